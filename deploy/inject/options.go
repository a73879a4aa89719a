package inject

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Options of an injection. The zero value of a field means its default, or, in
// a file that was injected before, what it was injected with.
type Options struct {
	Image        string   // of the sidecars
	ControlPlane string   // HOST:PORT, several separated by commas
	Consul       string   // HOST:PORT of the Consul agent
	Mode         string   // "transparent" or "explicit"
	UID          int      // of the sidecar's process; no application may have it
	TokenDir     string   // folder with one folder per instance that holds its join token
	TokenVolume  string   // instead: prefix of named volumes, one per instance
	IDPrefix     string   // before each instance's id in Consul
	Env          []string // KEY=VALUE for every sidecar
	After        []string // services, NAME or NAME:CONDITION, that every sidecar waits for
	HealthEvery  time.Duration

	Overwrite bool // let edits of made lines go
}

// Modes of a sidecar.
const (
	Transparent = "transparent"
	Explicit    = "explicit"
)

// Defaults of Options.
const (
	DefaultImage        = "parrel/parrel:latest"
	DefaultControlPlane = "parrel-controlplane:15012"
	DefaultConsul       = "consul:8500"
	DefaultTokenDir     = "./parrel-tokens"
	DefaultUID          = 15001
	DefaultHealthEvery  = 2 * time.Second
)

// Conditions under which compose lets a service start after another.
var conditions = []string{"service_started", "service_healthy", "service_completed_successfully"}

func (o *Options) fill() error {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&o.Image, DefaultImage)
	def(&o.ControlPlane, DefaultControlPlane)
	def(&o.Consul, DefaultConsul)
	def(&o.Mode, Transparent)
	if o.TokenVolume == "" {
		def(&o.TokenDir, DefaultTokenDir)
	}
	if o.UID == 0 {
		o.UID = DefaultUID
	}
	if o.HealthEvery == 0 {
		o.HealthEvery = DefaultHealthEvery
	}
	switch {
	case o.Mode != Transparent && o.Mode != Explicit:
		return fmt.Errorf("inject: --mode %q: there are %s and %s", o.Mode, Transparent, Explicit)
	case o.TokenDir != "" && o.TokenVolume != "":
		return fmt.Errorf("inject: --token-dir and --token-volume are both given: give one")
	case o.UID < 1 || o.UID > 1<<31:
		return fmt.Errorf("inject: --proxy-uid %d: give a user id above 0 that no application has", o.UID)
	case o.HealthEvery < 100*time.Millisecond:
		return fmt.Errorf("inject: --health-interval %s: give 100ms or more", o.HealthEvery)
	}
	for _, e := range o.Env {
		if k, _, ok := strings.Cut(e, "="); !ok || k == "" {
			return fmt.Errorf("inject: --env %q: write KEY=VALUE", e)
		}
	}
	for _, a := range o.After {
		if name, cond, ok := strings.Cut(a, ":"); name == "" || ok && !slices.Contains(conditions, cond) {
			return fmt.Errorf("inject: --after %q: write SERVICE or SERVICE:CONDITION, with one of %s", a, strings.Join(conditions, ", "))
		}
	}
	return nil
}

// words are the options as the head line holds them.
func (o *Options) words() []option {
	return []option{
		{"image", &o.Image, DefaultImage}, {"grpc-addr", &o.ControlPlane, DefaultControlPlane}, {"http-addr", &o.Consul, DefaultConsul},
		{"mode", &o.Mode, Transparent}, {"token-dir", &o.TokenDir, DefaultTokenDir}, {"token-volume", &o.TokenVolume, ""}, {"id-prefix", &o.IDPrefix, ""},
	}
}

type option struct {
	name string
	to   *string
	def  string
}

// head is the first line of an injected file.
func (o Options) head() string {
	var b strings.Builder
	b.WriteString(headMark + " v1")
	add := func(k, v string) { fmt.Fprintf(&b, " %s=%s", k, strconv.Quote(v)) }
	for _, w := range o.words() {
		if *w.to != w.def && *w.to != "" {
			add(w.name, *w.to)
		}
	}
	if o.UID != DefaultUID {
		add("proxy-uid", strconv.Itoa(o.UID))
	}
	if o.HealthEvery != DefaultHealthEvery {
		add("health-interval", o.HealthEvery.String())
	}
	for _, e := range o.Env {
		add("env", e)
	}
	for _, a := range o.After {
		add("after", a)
	}
	return b.String()
}

// over lays o over the options of a head line.
func (o Options) over(file, recorded string) (Options, error) {
	var r Options
	bad := func(format string, args ...any) (Options, error) {
		return Options{}, &Error{file, 1, "the options on this line cannot be read: " + fmt.Sprintf(format, args...) + "; correct them, or take them away"}
	}
	for rest := strings.TrimSpace(recorded); rest != ""; {
		k, v, ok := strings.Cut(rest, "=")
		if !ok {
			return bad("%q is not KEY=\"VALUE\"", rest)
		}
		q, err := strconv.QuotedPrefix(v)
		if err != nil {
			return bad("the value of %s is not quoted", k)
		}
		val, err := strconv.Unquote(q)
		if err != nil {
			return bad("the value of %s: %v", k, err)
		}
		rest = strings.TrimSpace(v[len(q):])
		switch k {
		case "env":
			r.Env = append(r.Env, val)
			continue
		case "after":
			r.After = append(r.After, val)
			continue
		case "proxy-uid":
			if r.UID, err = strconv.Atoi(val); err != nil {
				return bad("proxy-uid %q is no number", val)
			}
			continue
		case "health-interval":
			if r.HealthEvery, err = time.ParseDuration(val); err != nil {
				return bad("health-interval %q is no duration", val)
			}
			continue
		}
		i := slices.IndexFunc(r.words(), func(w option) bool { return w.name == k })
		if i < 0 {
			return bad("there is no option %q", k)
		}
		*r.words()[i].to = val
	}
	if o.TokenDir != "" {
		r.TokenVolume = ""
	}
	if o.TokenVolume != "" {
		r.TokenDir = ""
	}
	mine, theirs := o.words(), r.words()
	for i, w := range mine {
		if *w.to != "" {
			*theirs[i].to = *w.to
		}
	}
	if o.UID != 0 {
		r.UID = o.UID
	}
	if o.HealthEvery != 0 {
		r.HealthEvery = o.HealthEvery
	}
	if o.Env != nil {
		r.Env = o.Env
	}
	if o.After != nil {
		r.After = o.After
	}
	r.Overwrite = o.Overwrite
	return r, nil
}
