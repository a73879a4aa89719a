// Package client is the ADS client: delta, or state of the world for servers
// that have only that. It acknowledges or refuses resource by resource, keeps
// the last good set on disk, and resumes with the versions it holds.
//
// Owns: the stream, ACK and NACK, subscriptions, back-off, retained versions,
// the last good snapshot on disk. Does not know: what resources mean.
//
// The surface (signatures are fixed; the rest is the owner's):
//
//	type Config struct {
//		Node    Node                 // ID, Cluster, Metadata; user agent "parrel"
//		Dial    func(ctx context.Context) (*grpc.ClientConn, error) // one attempt; closed by the client
//		SotW    bool
//		Store   Store                // nil: nothing on disk
//		Check   func(resource.Resource) error // beyond Decode and Validate: can this sidecar execute it?
//		Handler Handler
//		Log *slog.Logger; Rand func() uint64; Backoff
//	}
//	// Update is what one response, or the disk, changed of one type.
//	type Update struct { Type resource.Type; Upserted []resource.Resource; Removed []string; Versions map[string]string; FromDisk bool; Warnings []wire.Warning }
//	type Handler interface { Apply(Update) } // one at a time, in order
//	func New(Config) (*Client, error)
//	func (c *Client) Subscribe(t resource.Type, names []string) // whole set for RDS, EDS, SDS; LDS and CDS are wildcard
//	func (c *Client) Run(ctx context.Context) error
//	func (c *Client) Status() Status // connected, since, per type: versions, last NACK with type, name, field, reason
//	type Store interface { Load() (*State, error); Save(*State) error }
//	func NewFileStore(path string, ...) Store // checksummed, atomic rename, 0600, previous generation kept
package client
