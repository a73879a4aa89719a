package inject

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"pgregory.net/rapid"
)

// Forms of each key as people write it; N is replaced by a number of the
// service. Every line is indented by the service's depth.
var forms = map[string][]string{
	"image":          {"image: nginx", `image: "nginx:1.25"   # pinned`, "image: >-\n  ng\n  inx", "build: ./api\nimage: x"},
	"ports":          {`ports: ["80"]`, "ports:\n  - 8N80-8N85:80", "ports:\n- target: 80\n- target: 81 # tls\n  protocol: tcp", "ports: # both\n  - '80'\n\n  # tls\n  - \"443\"", "ports: &pN [\"80\"]"},
	"expose":         {"expose: [80]", "expose:\n  - \"9000\"", "expose:\n- 1\n- 2"},
	"networks":       {"networks: [back]", "networks:\n  - back\n  - front", "networks:\n  back:\n    aliases: [N.local]\n  front:", "networks: *nets", "networks:\n  <<: *netmap\n  front: {}"},
	"depends_on":     {"depends_on: [zero]", "depends_on:\n  - zero", "depends_on:\n  zero:\n    condition: service_healthy", "depends_on: {zero: {condition: service_started}}"},
	"environment":    {"environment:\n  A: 1\n  B: |\n    two\n\n    # three\n", "environment: [A=1, \"B=x # y\"]", "environment:\n  - 'A=it''s'", "environment: &eN\n  A: \"x\n    y\"", "environment: *env", "environment:\n  <<: *env\n  C: d"},
	"command":        {"command: a\n  b c\n  d", "command: [\"sh\", '-c', \"# no\n    comment]\"]", "command: |-\n  #!/bin/sh\n  #parrel is fine\n  run", "command: |+\n  keep\n\n", "command:\n- a\n- b"},
	"hostname":       {"hostname: hN", "hostname: \"hN\"  # me"},
	"deploy":         {"deploy:\n  replicas: 2\n  resources: {}", "deploy: {replicas: 1}", "deploy:\n  # three\n  replicas: 3", "scale: 2", "deploy:\n  resources:\n    limits:\n      cpus: '0.5'"},
	"labels":         {"labels: [a=b, parrel.port=80]", "labels:\n  parrel.protocol: http", "labels: {parrel.inject: \"false\"}", "labels:\n  parrel.mode: explicit\n  parrel.upstreams: \"a:1, b:2\""},
	"sysctls":        {"sysctls: {net.core.somaxconn: 1}", "sysctls:\n  - net.a=1\n  - kernel.b=2", "sysctls: [kernel.b=2]"},
	"dns":            {"dns: 1.1.1.1", "dns: [1.1.1.1, 8.8.8.8]", "dns_search:\n  - a.b"},
	"extra_hosts":    {"extra_hosts: [\"a:1.2.3.4\"]", "extra_hosts:\n  a: 1.2.3.4"},
	"<<":             {"<<: *common", "<<: *withnet", "<<: [*common, *withnet]"},
	"restart":        {"restart: always", "restart: \"no\""},
	"profiles":       {"profiles: [debug]", "profiles:\n  - debug\n  - x"},
	"container_name": {"container_name: cN"},
	"network_mode":   {"network_mode: host", "network_mode: bridge", "network_mode: \"service:zero\""},
	"extends":        {"extends: zero", "extends:\n  service: zero", "extends: {file: other.yml, service: x}"},
	"volumes":        {"volumes: [data:/d]", "volumes:\n  - type: bind\n    source: .\n    target: /x"},
}

var keyOrder = []string{"image", "ports", "expose", "networks", "depends_on", "environment", "command", "hostname", "deploy", "labels", "sysctls", "dns",
	"extra_hosts", "<<", "restart", "profiles", "container_name", "network_mode", "extends", "volumes"}

const zero = `  zero:
    image: base
    environment:
      BASE: "1"
    expose: ["7000"]
    labels: {team: x}
`

const head = `x-nets: &nets
  - back
x-netmap: &netmap
  back: {}
x-env: &env
  E: "1"
x-common: &common
  init: true
  stop_signal: SIGINT
x-withnet: &withnet
  tty: true
  networks:
    back: {}
`

// composeFile draws a compose file.
func composeFile(t *rapid.T) string {
	noise := func(indent int) string {
		switch rapid.IntRange(0, 9).Draw(t, "noise") {
		case 0:
			return "\n"
		case 1:
			return strings.Repeat(" ", indent) + "# a comment: [ { \"\n"
		case 2:
			return "# at the left\n"
		}
		return ""
	}
	var services strings.Builder
	names := []string{"a", "b", "c_d", "e.f"}
	n := rapid.IntRange(1, 4).Draw(t, "services")
	at := rapid.IntRange(0, n).Draw(t, "zero")
	depth := rapid.SampledFrom([]int{2, 4}).Draw(t, "depth")
	for i := range n {
		if i == at {
			services.WriteString(zero)
		}
		services.WriteString(noise(2))
		anchor := ""
		switch rapid.IntRange(0, 5).Draw(t, "shape") {
		case 0:
			fmt.Fprintf(&services, "  %s: {image: x, ports: [\"80\", '81'], # c\n    networks: [back]}\n", names[i])
			continue
		case 1:
			anchor = fmt.Sprintf(" &s%d", i)
		}
		fmt.Fprintf(&services, "  %s:%s\n", names[i], anchor)
		keys := rapid.SliceOfNDistinct(rapid.SampledFrom(keyOrder[1:]), 0, 8, rapid.ID[string]).Draw(t, "keys")
		have := map[string]bool{}
		for _, k := range keys {
			have[k] = true
		}
		keys = append(keys, "image")
		keys = rapid.Permutation(keys).Draw(t, "order")
		if i > 0 && rapid.IntRange(0, 4).Draw(t, "share") == 0 && strings.Contains(services.String(), "&s0\n") && !have["<<"] {
			services.WriteString(strings.Repeat(" ", 2+depth) + "<<: *s0\n")
		}
		for _, k := range keys {
			if k == "network_mode" && have["networks"] || k == "<<" && have["network_mode"] {
				continue // compose itself refuses it
			}
			services.WriteString(noise(2 + depth))
			form := strings.ReplaceAll(rapid.SampledFrom(forms[k]).Draw(t, k), "N", fmt.Sprint(i+1))
			for _, l := range strings.Split(form, "\n") {
				if l != "" {
					l = strings.Repeat(" ", 2+depth) + l
				}
				services.WriteString(l + "\n")
			}
		}
		services.WriteString(noise(2))
	}
	if at >= n {
		services.WriteString(zero)
	}
	parts := []string{"services:" + rapid.SampledFrom([]string{"", "   # all"}).Draw(t, "c") + "\n" + services.String()}
	switch rapid.IntRange(0, 3).Draw(t, "volumes") {
	case 0:
		parts = append(parts, "volumes: {data: {}}\n")
	case 1:
		parts = append(parts, "volumes:\n  # mine\n  data:\n")
	case 2:
		parts = append(parts, "volumes:\n")
	}
	parts = append(parts, "networks:\n  back:\n  front: {}\n")
	if rapid.Bool().Draw(t, "swap") {
		parts[0], parts[len(parts)-1] = parts[len(parts)-1], parts[0]
	}
	out := rapid.SampledFrom([]string{"", "version: \"3.8\"\n", "---\n", "# top\n\n"}).Draw(t, "top") + head + strings.Join(parts, noise(0))
	out += noise(0)
	if rapid.Bool().Draw(t, "unterminated") {
		out = strings.TrimRight(out, "\n")
	}
	if rapid.IntRange(0, 3).Draw(t, "crlf") == 0 {
		out = strings.ReplaceAll(out, "\n", "\r\n")
	}
	if rapid.IntRange(0, 9).Draw(t, "bom") == 0 {
		out = bom + out
	}
	return out
}

// injectRandom draws a file that can be injected, and injects it.
func injectRandom(t *rapid.T) (string, *Result) {
	text := composeFile(t)
	o := Options{}
	if rapid.Bool().Draw(t, "volume") {
		o.TokenVolume = "join"
	}
	res, err := Compose("compose.yaml", text, o)
	if err != nil {
		var e *Error
		if !errors.As(err, &e) || strings.Contains(e.Text, "fault of parrel") || e.Line == 0 {
			t.Fatalf("%v\n%s", err, text)
		}
		t.Skip() // what is refused with its place, such as replicas with a container_name
	}
	return text, res
}

// TestRandomRoundTrip: what was injected comes back byte for byte, injecting
// again changes nothing, and every service of the result holds to the rules.
func TestRandomRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text, res := injectRandom(t)
		back, err := Uninject("f", res.Text, false)
		if err != nil || back != text {
			t.Fatalf("not what it was: %v\n--- before\n%q\n--- after\n%q", err, text, back)
		}
		again, err := Compose("f", res.Text, Options{})
		if err != nil || again.Text != res.Text {
			t.Fatalf("injected again: %v\n%s\n---\n%s", err, res.Text, again.Text)
		}
		holds(t, text, res)
	})
}

// holds checks the rules on the result, with nothing of the package's own model
// of the file.
func holds(t *rapid.T, before string, res *Result) {
	type dep struct {
		Condition string `yaml:"condition"`
	}
	var was, now struct {
		Services map[string]map[string]any `yaml:"services"`
	}
	for text, to := range map[string]any{before: &was, res.Text: &now} {
		if err := yaml.Unmarshal([]byte(strings.TrimPrefix(text, bom)), to); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
	}
	for name := range was.Services {
		if now.Services[name] == nil {
			t.Fatalf("the service %q is gone\n%s", name, res.Text)
		}
	}
	for name, s := range now.Services {
		mode, _ := s["network_mode"].(string)
		other, joins := strings.CutPrefix(mode, "service:")
		if !joins || !strings.HasSuffix(other, "-sidecar") {
			continue
		}
		sidecar := now.Services[other]
		if sidecar == nil {
			t.Fatalf("%s joins %q, which is not there\n%s", name, other, res.Text)
		}
		shared, _ := was.Services[name]["network_mode"].(string)
		for _, k := range moved {
			if strings.HasPrefix(shared, "service:") {
				break // it said so before, and the engine refuses it as it did
			}
			if _, ok := s[k]; ok && k != "network_mode" {
				t.Fatalf("%s joins its sidecar and still says %s\n%s", name, k, res.Text)
			}
		}
		var deps map[string]dep
		b, _ := yaml.Marshal(s["depends_on"])
		if err := yaml.Unmarshal(b, &deps); err != nil || deps[other].Condition != "service_healthy" {
			t.Fatalf("%s does not wait for %s: %v %v\n%s", name, other, deps, err, res.Text)
		}
		for d := range deps {
			if now.Services[d] == nil {
				t.Fatalf("%s waits for %s, which is not there\n%s", name, d, res.Text)
			}
		}
		if s["scale"] != nil && s["scale"] != 1 && !strings.HasPrefix(shared, "service:") {
			t.Fatalf("%s is still scaled\n%s", name, res.Text)
		}
		orig := was.Services[name]
		if orig == nil || orig["extends"] != nil || other != sidecarName(name) {
			continue
		}
		for _, k := range []string{"ports", "expose", "hostname", "dns", "extra_hosts"} {
			if fmt.Sprint(orig[k]) != fmt.Sprint(sidecar[k]) {
				t.Fatalf("%s said %s: %v, its sidecar says %v\n%s", name, k, orig[k], sidecar[k], res.Text)
			}
		}
		for _, k := range []string{"image", "command", "environment", "volumes", "restart", "labels", "init", "tty"} {
			if fmt.Sprint(orig[k]) != fmt.Sprint(s[k]) {
				t.Fatalf("%s said %s: %v, and says %v\n%s", name, k, orig[k], s[k], res.Text)
			}
		}
		if nets, ok := sidecar["networks"].(map[string]any); ok {
			for net, v := range nets {
				if !strings.Contains(fmt.Sprint(v), name) {
					t.Fatalf("%s is not found by its name in %s: %v\n%s", name, net, v, res.Text)
				}
			}
		}
	}
}

// TestRandomEdits: lines that are added, changed or deleted outside of made
// blocks after the injection are there, and only those, after it is taken back.
func TestRandomEdits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text, res := injectRandom(t)
		bomMark, rest := cutBOM(res.Text)
		_, plainText := cutBOM(text)
		ls, want := splitLines(rest), splitLines(plainText)
		// places: the lines of the injected file that were the user's.
		var places, of []int
		in, k := false, 0
		for i, l := range ls {
			switch mark(l) {
			case beginMark:
				in = true
			case endMark:
				in = false
			case headMark, aboutMark:
			default:
				if !in {
					places, of = append(places, i), append(of, k)
					k++
				}
			}
		}
		p := rapid.IntRange(0, len(places)-2).Draw(t, "place") // the last may be unterminated
		i, j := places[p], of[p]
		var edited, expected []line
		switch rapid.IntRange(0, 2).Draw(t, "edit") {
		case 0:
			added := line{"   # added by hand", "\n"}
			edited = append(append(append(edited, ls[:i]...), added), ls[i:]...)
			expected = append(append(append(expected, want[:j]...), added), want[j:]...)
		case 1:
			edited = append(append(edited, ls[:i]...), ls[i+1:]...)
			expected = append(append(expected, want[:j]...), want[j+1:]...)
		case 2:
			if want[j].text == "" {
				t.Skip() // the mark of an empty line has no blank behind it
			}
			edited, expected = append(edited, ls...), append(expected, want...)
			edited[i].text += " # changed"
			expected[j].text += " # changed"
		}
		back, err := Uninject("f", bomMark+joinLines(edited), false)
		if err != nil {
			t.Fatalf("%v\n%s", err, joinLines(edited))
		}
		if got := bomMark + joinLines(expected); back != got {
			t.Fatalf("the edit on line %d did not survive\n--- want\n%s\n--- got\n%s", i+1, got, back)
		}
	})
}

// TestRandomTampering: a made line that is changed, added or deleted is refused
// with its place, and let go where that is asked for.
func TestRandomTampering(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text, res := injectRandom(t)
		ls := splitLines(res.Text)
		var inside []int
		in := false
		for i, l := range ls {
			switch mark(l) {
			case beginMark:
				in = true
			case endMark:
				in = false
			default:
				if in {
					inside = append(inside, i)
				}
			}
		}
		if len(inside) == 0 {
			t.Skip()
		}
		i := rapid.SampledFrom(inside).Draw(t, "line")
		switch rapid.IntRange(0, 2).Draw(t, "how") {
		case 0:
			ls[i].text += "x"
		case 1:
			ls = append(append(append([]line{}, ls[:i]...), line{"      mine: true", "\n"}), ls[i:]...)
		case 2:
			ls = append(append([]line{}, ls[:i]...), ls[i+1:]...)
		}
		_, err := Uninject("f", joinLines(ls), false)
		var e *Error
		if !errors.As(err, &e) || e.Line != i+1 {
			t.Fatalf("line %d was tampered with, and the error is: %v\n%s", i+1, err, joinLines(ls))
		}
		if _, err := Compose("f", joinLines(ls), Options{}); err == nil {
			t.Fatalf("line %d was tampered with, and injecting it again says nothing", i+1)
		}
		back, err := Uninject("f", joinLines(ls), true)
		if err != nil || back != text {
			t.Fatalf("with overwrite it does not come back: %v", err)
		}
	})
}
