// Package sim runs a whole mesh in one process, in virtual time and without a
// network: a real control plane with the built-in CA, real sidecars that join
// it with tokens and follow it over gRPC, small applications, and a catalogue
// that the test writes. It is for questions about the mesh as a whole: does a
// change fail a request, what survives a partition, who closes what, when.
//
//	synctest.Test(t, func(t *testing.T) {
//		m := sim.New(t, sim.Config{Seed: 1})
//		m.Catalogue.Allow("web", "api")
//		api := m.Add(sim.Spec{Service: "api", Protocol: sim.HTTP})
//		web := m.Add(sim.Spec{Service: "web", Upstreams: []sim.Upstream{{Service: "api", Port: 9001}}})
//		m.Ready()
//		load := web.Load(sim.LoadConfig{Protocol: sim.HTTP, Port: 9001, RPS: 100})
//		m.Partition(web, api)
//		…
//		report := load.Stop()
//	})
//
// Owns: [Mesh] and what lives in it: [Catalogue] (the scripted
// discovery.Source and the sidecars' registrar), [Plane] (the control plane's
// process), [Instance] (a machine with an application and a sidecar),
// [Sidecar], [App], [Load].
//
// Does not know: how anything of it is made. Only exported surfaces of the
// product are used, as cmd/parrel uses them.
//
// Invariants: New is called inside a synctest bubble, and everything that it
// started has ended when the test's clean-up is over; nothing waits for real
// time or opens a socket (the disk, below the test's temporary directory, is
// real); decisions that are drawn from [Mesh.Rand] or [Mesh.Fork] are the same
// for the same seed, whatever the scheduler does.
//
// Read first: TestMesh.
package sim
