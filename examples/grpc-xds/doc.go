// Command grpc-xds is a gRPC client and a gRPC server that are part of a mesh
// without a sidecar: grpc-go's own xDS support, configured by parrel's control
// plane. Nothing in it is parrel's; what makes it a part of the mesh is the
// bootstrap file that GRPC_XDS_BOOTSTRAP names.
//
//	grpc-xds server -listen 127.0.0.1:50051 -instance pricing-1
//	grpc-xds client -target xds:///pricing -count 10
//
// README.md says how to run it; main_test.go runs it just so.
package main
