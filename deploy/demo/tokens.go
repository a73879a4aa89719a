package demo

import (
	"context"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/parrel-mesh/parrel/mtls/ca"
)

// openCA opens the demo's CA, which the first caller makes.
func (w *world) openCA() (*ca.CA, error) {
	td, err := spiffeid.TrustDomainFromString(w.l.trustDomain)
	if err != nil {
		return nil, err
	}
	return ca.Open(w.l.caDir(), ca.Config{TrustDomain: td})
}

// mintTokens makes one join token for each host: as `parrel token create` would.
func (w *world) mintTokens(ctx context.Context) error {
	for _, h := range w.l.hosts {
		if err := w.mintToken(ctx, h); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) mintToken(_ context.Context, h *host) error {
	authority, err := w.openCA()
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	var services []string
	for _, i := range h.instances {
		services = append(services, i.role)
	}
	token, err := authority.Mint(ca.TokenSpec{Services: services, Datacenter: w.l.datacenter})
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	return writeFile(w.l.tokenFile(h.name), token+"\n")
}
