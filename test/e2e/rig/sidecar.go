package rig

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Sidecar is a sidecar process; its addresses and its folder survive restarts.
type Sidecar struct {
	*Process
	Admin   string // host:port
	DataDir string
	Token   string // file
}

// Sidecar starts a sidecar for instances given as ID=SERVICE, with a new token
// for these services.
func (r *Rig) Sidecar(controlPlanes string, instances []string, flags ...string) *Sidecar {
	r.T.Helper()
	var services []string
	for _, i := range instances {
		_, name, _ := strings.Cut(i, "=")
		services = append(services, name)
	}
	return r.SidecarToken(r.Token(services...), controlPlanes, instances, flags...)
}

// SidecarToken is Sidecar with a token of the caller's, "" for none.
func (r *Rig) SidecarToken(token, controlPlanes string, instances []string, flags ...string) *Sidecar {
	r.T.Helper()
	id, _, _ := strings.Cut(instances[0], "=")
	s := &Sidecar{Admin: Addr(Port(r.T)), DataDir: filepath.Join(r.Dir, fmt.Sprintf("data-%s-%d", id, len(r.procs)))}
	args := []string{"sidecar", "--grpc-addr", controlPlanes, "--data-dir", s.DataDir, "--admin-bind", s.Admin, "--drain-time", "2s"}
	if token != "" {
		s.Token = s.DataDir + ".token"
		if err := os.WriteFile(s.Token, []byte(token+"\n"), 0o600); err != nil {
			r.T.Fatal(err)
		}
		args = append(args, "--token-file", s.Token)
	}
	for _, i := range instances {
		args = append(args, "--sidecar-for", i)
	}
	s.Process = r.Process("sidecar-"+id, append(args, flags...)...)
	s.Start()
	return s
}

// Ready waits for /ready.
func (s *Sidecar) Ready(within time.Duration) {
	s.r.T.Helper()
	s.r.Eventually(within, s.Name+" is ready", func() error {
		_, err := Fetch("http://" + s.Admin + "/ready")
		if err != nil && !s.Alive() {
			s.r.T.Fatalf("%s has ended", s.Name)
		}
		return err
	})
}

// Page gets a page of the admin listener.
func (s *Sidecar) Page(path string) string {
	s.r.T.Helper()
	body, err := Fetch("http://" + s.Admin + path)
	if err != nil {
		s.r.T.Fatalf("%s: %v", s.Name, err)
	}
	return body
}

// Endpoint is what a sidecar knows of one endpoint of a cluster.
type Endpoint struct {
	Healthy bool
	Flags   string
	Weight  string
}

// Endpoints reads the endpoints of the cluster of a service from /clusters, by
// address.
func (s *Sidecar) Endpoints(service string) map[string]Endpoint {
	s.r.T.Helper()
	out := map[string]Endpoint{}
	for line := range strings.Lines(s.Page("/clusters")) {
		parts := strings.Split(strings.TrimSpace(line), "::")
		if len(parts) != 4 || parts[0] != service && !strings.HasPrefix(parts[0], service+".") {
			continue
		}
		e := out[parts[1]]
		switch parts[2] {
		case "health_flags":
			e.Flags, e.Healthy = parts[3], parts[3] == "healthy"
		case "weight":
			e.Weight = parts[3]
		}
		out[parts[1]] = e
	}
	return out
}

// AccessLine is what tests read of an access log's line.
type AccessLine struct {
	Direction       string `json:"direction"`
	Code            string `json:"code"`
	Flags           string `json:"flags"`
	Detail          string `json:"detail"`
	Path            string `json:"path"`
	Status          int    `json:"status"`
	SourcePrincipal string `json:"source_principal"`
	Listener        string `json:"listener"`
}

// Access gives the lines of the access log.
func (s *Sidecar) Access() []AccessLine {
	var out []AccessLine
	for line := range bytes.Lines([]byte(s.Log())) {
		var a AccessLine
		if json.Unmarshal(line, &a) == nil && a.Code != "" && a.Direction != "" {
			out = append(out, a)
		}
	}
	return out
}

// Accessed waits for a line of the access log.
func (s *Sidecar) Accessed(within time.Duration, what string, match func(AccessLine) bool) AccessLine {
	s.r.T.Helper()
	var found AccessLine
	s.r.Eventually(within, fmt.Sprintf("the access log of %s has %s", s.Name, what), func() error {
		for _, a := range s.Access() {
			if match(a) {
				found = a
				return nil
			}
		}
		return fmt.Errorf("it has %d lines", len(s.Access()))
	})
	return found
}
