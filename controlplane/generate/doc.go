// Package generate makes resources of a mesh snapshot. Pure functions.
//
// Owns: which resources a workload needs ([Names]), what is in each
// ([Resource]), which of them a change touches ([Affected]), and what parrel
// does not execute of what users wrote ([Analyze], with the table of honoured
// fields). Does not know: I/O, time, streams, protos.
//
// What a connect-proxy workload gets:
//
//	LDS  public_listener              mTLS, intentions, the local application
//	     NAME:ADDRESS:PORT            one for each explicit upstream
//	CDS  SERVICE.NS.DC.internal.TD    one for each upstream service; options that
//	                                  the caller set are part of the name
//	     local_app|ADDRESS|PROTOCOL   the application; its name says its content
//	EDS  SERVICE.NS.DC.internal.TD    the proxies of the upstream service
//	RDS  the name of the cluster      one for each upstream that speaks HTTP
//	SDS  ROOTCA                       trust bundles; never keys, which parrel's
//	                                  sidecars make themselves
//
// A transparent one gets beside that:
//
//	LDS  outbound_listener:127.0.0.1:PORT   captured connections, a chain or two
//	                                        for each service that it may call
//	     inbound_listener:0.0.0.0:15006     the application's own port
//	     dns:127.0.0.1:15053                the names of the mesh; shared by all
//	CDS  SERVICE…|http                      what turned out to be HTTP
//	     original-destination               what leaves the mesh
//	     passthrough~SERVICE…               instances that are dialled directly
//	     destination|HOST:PORT              destinations outside, by name
//
// Envoy gets the same. It finds "default", its own certificate and key, in its
// own bootstrap or in files (parrel svid writes them): the control plane has no
// key of anybody's to give. gRPC without a proxy (View.GRPC) asks by service
// name and gets certificate provider instances named "default" in place of SDS;
// any HTTP service of the catalogue can be asked for, since a connect-native
// registration declares no upstreams: the destination's intentions decide.
//
// Invariants: clusters, routes, endpoints and trust hold nothing of one
// workload, so that all who need them share them; a name whose content depends
// on options carries the options, so that the content of a name depends on the
// mesh alone. Every name in Names has a Resource. Regenerating what Affected
// names gives the same as regenerating everything.
//
// Read first: TestGolden, TestIncremental.
package generate
