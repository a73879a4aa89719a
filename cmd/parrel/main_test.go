package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// parrel runs the root command in this process.
func parrel(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	for _, name := range []string{"CONSUL_HTTP_ADDR", "CONSUL_HTTP_TOKEN", "CONSUL_HTTP_TOKEN_FILE", "CONSUL_CACERT"} {
		t.Setenv(name, "")
	}
	var out, errs bytes.Buffer
	r := newRoot()
	r.SetOut(&out)
	r.SetErr(&errs)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // for what runs although it should not
	defer cancel()
	err = r.run(ctx, args)
	return out.String(), errs.String(), err
}

// TestBadInput: whatever is wrong on the command line gets one sentence with
// place, cause and remedy, and the command fails.
func TestBadInput(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "missing")
	empty := filepath.Join(dir, "empty")
	file := filepath.Join(dir, "file")
	if err := errors.Join(os.Mkdir(empty, 0o700), os.WriteFile(file, []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	cp := func(flags string) string { return "controlplane --ca-dir " + missing + " " + flags }
	side := func(flags string) string { return "sidecar --data-dir " + missing + " " + flags }
	token := func(flags string) string { return "token create --service web " + flags }
	for _, c := range []struct{ args, want string }{
		{"foo", `"foo" is no command: ` + "`parrel help` lists all"},
		{"statsu", `"statsu" is no command: did you mean status?`},
		{"foo --bar", `"foo" is no command`},
		{"help foo", `help: there is no command "foo": ` + "`parrel help` lists all"},
		{"status --nope", "status: unknown flag: --nope; see `parrel status --help`"},
		{"status -nope", "status: unknown flag: --nope"},
		{"status -o xml", `status: invalid argument "xml" for "-o, --output" flag: use table, json or yaml; see`},
		{"version -o=xml", "use table, json or yaml"},
		{"status a b", `status: "b" is one argument too many: write ` + "`parrel status [NODE]`"},
		{"analyze x", `analyze: "x" is one argument too many: it takes flags only`},
		{"version x", `version: "x" is one argument too many`},
		{"status --api ://", "--api :// is no address of an API: write http://HOST:PORT"},
		{"status --api ftp://x", "--api ftp://x is no address of an API"},
		{"status --api", "status: flag needs an argument: --api; see"},

		{"config", "config: what? Give one of: clusters, listeners, routes, endpoints, secrets"},
		{"config bogus x", `config: "bogus" is no command: there are clusters, listeners`},
		{"config clusters", "config clusters: NODE is missing: write `parrel config clusters web-1-sidecar-proxy`"},
		{"config clusters a b", `config clusters: "b" is one argument too many: it takes one NODE`},

		{"explain", "explain: from whom to whom? Give --from SERVICE and --to SERVICE"},
		{"explain --from a", "Give --from SERVICE and --to SERVICE"},
		{"explain --from a --to b x", `explain: "x" is neither a method (GET) nor a path (/x)`},
		{"explain --from a --to b GET / x", `explain: "x" is one argument too many`},
		{"explain --from a --to b --header x", `explain: --header "x": write NAME: VALUE`},

		{"token", "token: what? Give one of: create"},
		{"token make", `token: "make" is no command: there are create`},
		{"token create", "token create: for which service? Give --service NAME"},
		{token(""), "token create: where is the CA? Give --ca-dir"},
		{token("--ca-dir " + missing), "token create: --ca-dir: stat " + missing + ": no such file or directory; give the directory that the control plane has"},
		{token("--ca-dir " + file), "is no directory; give the directory that the control plane has"},
		{token("--ca-dir " + empty), "there is no CA in " + empty},
		{token("--ca-dir " + missing + " --trust-domain Bad!"), `token create: --trust-domain "Bad!": trust domain characters are limited to`},
		{token("--ca-dir " + empty + " --ttl soon"), `token create: invalid argument "soon" for "--ttl" flag: must be a duration like`},
		{"ca", "ca: what? Give one of: rotate"},
		{"ca rotate", "ca rotate: where is the CA? Give --ca-dir"},
		{"ca rotate --ca-dir " + missing, "ca rotate: --ca-dir: stat " + missing},
		{"ca rotate --ca-dir " + empty, "there is no CA in " + empty},

		{"svid", "svid: where to? Give --out, a folder"},
		{"svid --out " + missing, "svid: for which service? Give --service NAME"},
		{"svid --out " + missing + " --service web --token a --token-file b", "both a token and a token file are given: give one"},
		{"svid --out " + missing + " --service web --log-level loud", `--log-level "loud": use debug, info, warn or error`},
		{"svid --once --out " + empty + "/tls --service web --token x", "not a join token"},

		{"controlplane", "controlplane: where is the CA? Give --ca-dir"},
		{cp("--catalog-dir " + missing), "no such file or directory; name a directory that exists"},
		{cp("--catalog-dir " + file), "is no directory; name the directory that holds the definitions"},
		{cp("--catalog-dir " + empty + " --http-addr x:1"), "--catalog-dir and --http-addr name two catalogues: give one"},
		{cp("--catalog-dir " + empty + " --consul-token-file x"), "are for Consul, and --catalog-dir is given: leave one out"},
		{cp("--no-checks"), "--no-checks is for --catalog-dir alone"},
		{cp("--default-intention maybe"), `--default-intention "maybe": use allow or deny`},
		{cp("--leaf-ttl 1s"), "--leaf-ttl 1s is too short to be renewed in time: give at least 30s"},
		{cp("--leaf-ttl x"), "must be a duration like"},
		{cp("--drain-time -5s"), "--drain-time -5s is below zero: give 0s or more"},
		{cp("-drain-time=-5s"), "--drain-time -5s is below zero"},
		{cp("--catalog-dir " + empty + " --grpc-bind nope"), `--grpc-bind "nope": address nope: missing port in address; write HOST:PORT`},
		{cp("--catalog-dir " + empty + " --http-bind nope"), `--http-bind "nope"`},
		{cp("--catalog-dir " + empty + " --trust-domain B@d"), `--trust-domain "B@d": trust domain characters are limited to`},
		{cp("--catalog-dir " + empty + " --advertise http://x"), `--advertise "http://x" is neither a DNS name nor an IP address`},
		{cp("--catalog-dir " + empty + " --api-host x:1"), `--api-host "x:1" is no name of a host`},
		{cp("--http-addr ::::"), `--http-addr "::::" is no address: write HOST:PORT`},
		{cp("--http-addr 127.0.0.1:1 --consul-token-file " + missing), "open " + missing + ": no such file or directory; mend"},
		{cp("--http-addr 127.0.0.1:1 --ca-file " + missing), "no such file or directory; mend"},
		{cp("--log-level loud"), `--log-level "loud": use debug, info, warn or error`},

		{"sidecar", "sidecar: for which service instance? Give --sidecar-for ID"},
		{"sidecar --sidecar-for web", "no data directory given: set --data-dir"},
		{side("--sidecar-for =web"), `--sidecar-for "=web": write ID or ID=SERVICE`},
		{side("--sidecar-for web="), `--sidecar-for "web=": write ID or ID=SERVICE`},
		{side("--sidecar-for web --sidecar-for web"), "workload web-sidecar-proxy is given twice"},
		{side("--sidecar-for a --sidecar-for b --proxy-id x"), "--proxy-id names one proxy and --sidecar-for several services"},
		{side("--sidecar-for a --sidecar-for b --service x"), "write --sidecar-for ID=SERVICE for each"},
		{side("--proxy-id x"), "add --service NAME or --sidecar-for ID"},
		{side("--sidecar-for web --token a --token-file b"), "--token and --token-file are both given: give one"},
		{side("--sidecar-for web --admin-bind 0.0.0.0:15000"), "is not on loopback; the admin API is for this machine only"},
		{side("--sidecar-for web --ready-bind x"), `readiness address "x": not an ip:port; write address:port`},
		{side("--sidecar-for web --grpc-addr x"), `address of the control plane "x": address x: missing port in address; write host:port`},
		{side("--sidecar-for web --drain-time -1s"), "--drain-time -1s is below zero"},
		{side("--sidecar-for web --http-addr ::::"), `sidecar: --http-addr "::::" is no address`},
		{side("--sidecar-for web --http-addr 127.0.0.1:1 --ca-file " + missing), "no such file or directory; mend"},
		{side("--sidecar-for web --log-level loud"), `--log-level "loud": use debug, info, warn or error`},
		{"sidecar --sidecar-for web --data-dir " + file, "data directory"},

		{"demo bogus", `demo: "bogus" is one argument too many`},
		{"demo add", "demo add: SERVICE is missing: write `parrel demo add orders --dir DIR`"},
		{"demo add orders", "demo add: which demo? Give the folder that `parrel demo` prints as --dir"},
		{"demo add orders --dir " + missing, "no demo runs in " + missing},
		{"demo --consul --consul-binary " + missing, "--consul-binary: stat " + missing + ": no such file or directory; run `make consul`"},
		{"demo --port-base x", `demo: invalid argument "x" for "--port-base" flag`},
	} {
		t.Run(strings.ReplaceAll(c.args, dir, "DIR"), func(t *testing.T) {
			stdout, _, err := parrel(t, strings.Fields(c.args)...)
			switch {
			case err == nil:
				t.Fatalf("it succeeded, and printed %q", stdout)
			case !strings.Contains(err.Error(), c.want):
				t.Errorf("it says\n %s\nwant\n %s", err, c.want)
			case strings.Contains(err.Error(), "\n"):
				t.Errorf("it says more than one line: %q", err)
			case stdout != "":
				t.Errorf("it printed %q", stdout)
			}
			if _, err := os.Stat(missing); err == nil {
				t.Errorf("it made %s", missing)
				os.RemoveAll(missing)
			}
		})
	}
}

func TestDoubleDashes(t *testing.T) {
	for in, want := range map[string]string{
		"status -api x -o json":        "status --api x -o json",
		"status --api=x -o=json":       "status --api=x -o=json",
		"status -ojson":                "status -ojson",
		"status -output yaml":          "status --output yaml",
		"explain -from=a -H a:b":       "explain --from=a -H a:b",
		"demo -once -- -once":          "demo --once -- -once",
		"controlplane -drain-time -5s": "controlplane --drain-time -5s",
		"x - -1 -.5":                   "x - -1 -.5",
	} {
		if got := strings.Join(doubleDashes(strings.Fields(in)), " "); got != want {
			t.Errorf("%s became %s, want %s", in, got, want)
		}
	}
}

// TestTokens: what needs a CA makes one only where the user said so.
func TestTokens(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	out, _, err := parrel(t, "token", "create", "-ca-dir", dir, "-trust-domain", "mesh.test", "-service", "web", "-service", "api")
	if err != nil || !strings.HasPrefix(out, "parrel1.") || strings.Count(out, "\n") != 1 {
		t.Fatalf("%q %v", out, err)
	}
	again, _, err := parrel(t, "token", "create", "--ca-dir", dir, "--service", "web")
	if err != nil || again == out {
		t.Errorf("a second token: %q %v", again, err)
	}
	for args, want := range map[string]string{
		"--service web --trust-domain other.test": `is of trust domain "mesh.test"`,
		"--service web --ttl 99h":                 "a token cannot live for 99h0m0s: give between 1s and 24h0m0s",
		"--service we/b":                          `no SPIFFE id can be made of service "we/b"`,
		"--service web --datacenter=":             "needs the datacenter",
	} {
		if _, _, err := parrel(t, append([]string{"token", "create", "--ca-dir", dir}, strings.Fields(args)...)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", args, err)
		}
	}
	out, _, err = parrel(t, "ca", "rotate", "--ca-dir", dir, "--overlap", "1h")
	if err != nil || !strings.HasPrefix(out, "a new root of mesh.test is trusted from now on and signs from ") {
		t.Errorf("rotate: %q %v", out, err)
	}
	if _, _, err = parrel(t, "ca", "rotate", "--ca-dir", dir); err == nil || !strings.Contains(err.Error(), "a rotation is under way") {
		t.Errorf("rotate twice: %v", err)
	}
	if _, _, err = parrel(t, "ca", "rotate", "--ca-dir", dir, "--overlap", "-1h"); err == nil || !strings.Contains(err.Error(), "cannot be") {
		t.Errorf("rotate into the past: %v", err)
	}
}

// TestHelp: each command that is shown tells of itself, and help ends well.
func TestHelp(t *testing.T) {
	for _, args := range [][]string{{}, {"help"}, {"--help"}, {"help", "token", "create"}, {"token", "create", "-help"}, {"config", "-h"}} {
		out, _, err := parrel(t, args...)
		if err != nil || !strings.Contains(out, "Usage:") {
			t.Errorf("%v: %v %q", args, err, out)
		}
	}
}
