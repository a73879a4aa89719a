package pool

import (
	"context"
	"crypto/tls"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/sidecar/netio"
)

// Exchange is what is known of one request's way beside its response.
type Exchange struct {
	Peer string // SPIFFE id that the endpoint proved
	TLS  bool
}

// open opens a connection, and TLS on it where conf is given: raw is the socket,
// conn what is spoken on, alpn what was agreed on. ctx and the connect time-out
// bound it. The error is an [*Error].
func (p *Pool) open(ctx context.Context, conf *tls.Config) (raw, conn netio.Conn, x Exchange, alpn string, err error) {
	if conf != nil {
		if err := p.identity(ctx, conf); err != nil {
			return nil, nil, x, "", err
		}
	}
	octx, cancel := context.WithTimeout(ctx, p.c.ConnectTimeout)
	defer cancel()
	raw, err = p.d.Net.Dial(octx, p.c.Network, p.c.Address)
	if err != nil {
		err = connectError(ctx, octx, err, p.c.ConnectTimeout)
		p.connected(err)
		return nil, nil, x, "", err
	}
	if k := p.c.Keepalive; k != nil {
		netio.SetKeepAlive(raw, k.Probes, k.Time, k.Interval)
	}
	conn = raw
	if conf != nil {
		tc := netio.ClientTLS(raw, conf)
		if err := tc.Handshake(octx); err != nil {
			_ = raw.Reset()
			err = handshakeError(ctx, octx, err, p.c.ConnectTimeout)
			p.connected(err)
			return nil, nil, x, "", err
		}
		cs := tc.ConnectionState()
		x.TLS, alpn = true, cs.NegotiatedProtocol
		if id, ok := mtls.PeerID(cs); ok {
			x.Peer = id.String()
		}
		conn = tc
	}
	p.connected(nil)
	return raw, conn, x, alpn, nil
}

// identity asks for our own certificate before anybody is dialled: the other
// side's refusal of us, or its own end, would hide that we have none.
func (p *Pool) identity(ctx context.Context, conf *tls.Config) error {
	if conf.GetClientCertificate == nil {
		return nil
	}
	if _, err := conf.GetClientCertificate(&tls.CertificateRequestInfo{}); err != nil {
		return handshakeError(ctx, ctx, err, p.c.ConnectTimeout)
	}
	return nil
}
