package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestDrain: what is asked for, and what each answer comes to.
func TestDrain(t *testing.T) {
	status, asked := 200, ""
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Method + " " + r.URL.RequestURI()
		w.WriteHeader(status)
		_, _ = w.Write([]byte("what it says")) // the asker may have gone
	}))
	defer srv.Close()
	admin := " --admin " + strings.TrimPrefix(srv.URL, "http://")
	for _, c := range []struct {
		args   string
		status int
		asked  string
		err    string
	}{
		{admin, 200, "POST /drain_listeners?wait=1m0s", ""},
		{"--inbound-only --wait 5s" + admin, 200, "POST /drain_listeners?inboundonly=&wait=5s", ""},
		{"--wait 0s" + admin, 200, "POST /drain_listeners?", ""},
		{"--wait 5s" + admin, 504, "", "drain: the traffic has not ended within 5s"},
		{admin, 404, "", "said 404 Not Found: what it says"},
		{"--wait -1s" + admin, 200, "", "drain: --wait -1s is below zero"},
		{"--admin nowhere", 200, "", `drain: --admin "nowhere" is no address`},
		{"--admin unix:/nonesuch", 200, "", "drain: no answer from a sidecar at unix:/nonesuch"},
	} {
		status = c.status
		err := newRoot().run(context.Background(), append([]string{"drain"}, strings.Fields(c.args)...))
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", c.args, err, c.err)
		}
		if c.asked != "" && asked != c.asked {
			t.Errorf("%s: asked %q, want %q", c.args, asked, c.asked)
		}
	}
}

// TestRunFlags: what `parrel run` says of flags that cannot be.
func TestRunFlags(t *testing.T) {
	for args, want := range map[string]string{
		"":                   "run: which program?",
		"--service web":      "run: which program?",
		"--service web true": `run: write -- before "true"`,
		"--service web --start-timeout 0s -- true":                    "run: --start-timeout 0s: give a time above zero",
		"--service web --kill-after -1s -- true":                      "run: --kill-after -1s is below zero",
		"--service web --stop-order app -- true":                      `run: --stop-order "app": write inbound-first or together`,
		"--service web --on-sidecar-exit x -- true":                   `run: --on-sidecar-exit "x": write keep, restart, stop`,
		"--service web --stop-signals TERM,KILL -- true":              `run: --stop-signals: "KILL" is no signal`,
		"--service web --app-signal x -- true":                        `run: --app-signal: "x" is no signal`,
		"--service web --user nonesuch -- true":                       "run: --user nonesuch: this system has no such user",
		"--service web --all-local -- true":                           "run: --all-local is for `parrel sidecar`",
		"--service web --sidecar-for web-1=api -- true":               "run: --service web and --sidecar-for web-1=api name two services",
		"--sidecar-for a --sidecar-for b --service web -- true":       "run: --service names one service and --sidecar-for several",
		"--data-dir /nonexistent -- true":                             "run: for which service instance?",
		"--service web --drain-time -1s -- true":                      "run: --drain-time -1s is below zero",
		"--service web --shutdown-delay -1s -- true":                  "run: --shutdown-delay -1s is below zero",
		"--service web -c x.yaml -- true":                             "a static configuration has no control plane",
		"--service web --grpc-addr x --data-dir /tmp/x -- true":       "address of the control plane",
		"--service web --data-dir /proc/nonesuch --token t -- nosuch": "run: there is no program nosuch",
	} {
		cmd := newRoot()
		cmd.SetErr(new(strings.Builder))
		err := cmd.run(context.Background(), append([]string{"run"}, strings.Fields(args)...))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("run %s: %v, want %q", args, err, want)
		}
	}
}
