package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/test/e2e/rig"
)

// leafOf reads serial and end of a sidecar's leaf from /certs.
func leafOf(s *rig.Sidecar) (serial string, expires time.Time, err error) {
	var certs struct {
		Certificates []struct {
			CertChain []struct {
				Serial  string    `json:"serial_number"`
				Expires time.Time `json:"expiration_time"`
			} `json:"cert_chain"`
		} `json:"certificates"`
	}
	if err := json.Unmarshal([]byte(s.Page("/certs")), &certs); err != nil {
		return "", time.Time{}, err
	}
	for _, c := range certs.Certificates {
		if len(c.CertChain) > 0 {
			return c.CertChain[0].Serial, c.CertChain[0].Expires, nil
		}
	}
	return "", time.Time{}, errors.New("no chain")
}

// TestLeafRotation renews every identity under load, until the first ones have
// expired. No request fails, and a TCP connection that was opened with the
// first identities stays.
func TestLeafRotation(t *testing.T) {
	t.Parallel()
	m := newMesh(t, options{controlPlane: []string{"--leaf-ttl", "30s"}})
	up := rig.Port(t)
	m.agent.Entry(rig.Intentions("ledger", "web", "allow"))
	ledger := m.serve("ledger", m.TCPApp("ledger-1"))
	m.call("ledger", up)
	var line *rig.Line
	m.Eventually(soon, "ledger answers", func() (err error) {
		line, _, err = rig.DialLine(up)
		return err
	})
	defer line.Close()

	load := m.Load(2, m.api)
	sidecars := []*rig.Sidecar{m.web, m.apis["api-1"].sidecar, ledger}
	first := map[*rig.Sidecar]string{}
	var last time.Time
	for _, s := range sidecars {
		serial, expires, err := leafOf(s)
		if err != nil {
			t.Fatal(err)
		}
		if left := time.Until(expires); left > 31*time.Second {
			t.Fatalf("%s has a leaf that lives for another %s", s.Name, left)
		}
		first[s] = serial
		if expires.After(last) {
			last = expires
		}
	}
	for _, s := range sidecars {
		took := m.Eventually(30*time.Second, s.Name+" has another leaf", func() error {
			serial, _, err := leafOf(s)
			if err == nil && serial == first[s] {
				err = fmt.Errorf("it is %s still", serial)
			}
			return err
		})
		t.Logf("%s: another leaf after %s", s.Name, took)
	}
	m.Step("until the first leaves have expired")
	m.Eventually(40*time.Second, "their end", func() error {
		if !time.Now().After(last.Add(time.Second)) {
			return errors.New("they live")
		}
		return nil
	})
	load.More(t, 100)
	if err := line.Echo("opened with the first identities"); err != nil {
		t.Errorf("the TCP connection: %v", err)
	}
	for _, s := range sidecars {
		if _, expires, err := leafOf(s); err != nil || time.Now().After(expires) {
			t.Errorf("%s: its leaf expired at %s (%v)", s.Name, expires, err)
		}
	}
	m.cp.InSync("web-1-sidecar-proxy", "api-1-sidecar-proxy", "ledger-1-sidecar-proxy")
	load.Clean(t)
}
