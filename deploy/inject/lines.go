package inject

import (
	"crypto/sha256"
	"fmt"
	"strings"
)

// The marks. Every line of a compose file that begins, after blanks, with one
// of the two prefixes is this package's.
const (
	removedMark = "#parrel-"
	controlMark = "#parrel:"

	headMark  = controlMark + "injected"
	aboutMark = controlMark + "about"
	beginMark = controlMark + "begin"
	endMark   = controlMark + "end"

	aboutText = aboutMark + " What stands between begin and end is made; lines behind " + removedMark +
		" are yours. `parrel inject` makes it anew, `parrel inject --uninject` gives your file back."
	noNewline = "no-newline" // the line before the block ended the file without a newline
)

// line is one line as YAML counts them, with what ends it.
type line struct{ text, eol string }

// Error is something wrong with an input, with its place.
type Error struct {
	File string
	Line int // 1-based; 0: the whole file
	Text string
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return e.File + ": " + e.Text
	}
	return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Text)
}

// splitLines splits where YAML 1.1's scanners do, so that line numbers agree.
func splitLines(s string) []line {
	var out []line
	for s != "" {
		i, n := nextBreak(s)
		if n == 0 {
			return append(out, line{s, ""})
		}
		out = append(out, line{s[:i], s[i : i+n]})
		s = s[i+n:]
	}
	return out
}

// nextBreak finds the first line break: its place and its length, 0 for none.
func nextBreak(s string) (int, int) {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\n':
			return i, 1
		case '\r':
			if strings.HasPrefix(s[i:], "\r\n") {
				return i, 2
			}
			return i, 1
		case 0xc2:
			if strings.HasPrefix(s[i:], "\u0085") {
				return i, 2
			}
		case 0xe2:
			if strings.HasPrefix(s[i:], "\u2028") || strings.HasPrefix(s[i:], "\u2029") {
				return i, 3
			}
		}
	}
	return 0, 0
}

func joinLines(ls []line) string {
	var b strings.Builder
	for _, l := range ls {
		b.WriteString(l.text)
		b.WriteString(l.eol)
	}
	return b.String()
}

const bom = "\ufeff"

// cutBOM takes a byte order mark off.
func cutBOM(s string) (mark, rest string) {
	if rest, ok := strings.CutPrefix(s, bom); ok {
		return bom, rest
	}
	return "", s
}

// mark gives the mark that a line begins with, "" for none.
func mark(l line) string {
	t := strings.TrimLeft(l.text, " \t")
	for _, m := range []string{headMark, aboutMark, beginMark, endMark, removedMark} {
		if t == m || strings.HasPrefix(t, m+" ") {
			return m
		}
	}
	if strings.HasPrefix(t, controlMark) || strings.HasPrefix(t, removedMark) {
		return controlMark // ours and not known: another version, or damaged
	}
	return ""
}

// checksum is that of made lines, without what ends them and without blanks
// before the end, which editors touch.
func checksum(ls []string) string {
	h := sha256.New()
	for _, l := range ls {
		fmt.Fprintln(h, strings.TrimRight(l, " \t\r"))
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:4])
}

// made is one block of made lines in an injected file.
type made struct {
	id    string
	first int // line number of the begin mark, 1-based
	lines []string
	whole bool // its checksum holds
}

// stripped is an injected file without what was injected.
type stripped struct {
	text     string
	injected bool   // it had been injected
	options  string // what the head line says behind the version
	blocks   []made
}

// strip takes everything off that this package put in. It looks at marks only:
// the YAML around them may be anything.
func strip(file, text string) (*stripped, error) {
	mark1, rest := cutBOM(text)
	ls := splitLines(rest)
	out := &stripped{}
	var kept []line
	var block *made
	var sum string
	ours := -1 // where kept ended with a newline that this package added
	fail := func(i int, format string, args ...any) error {
		return &Error{file, i + 1, fmt.Sprintf(format, args...)}
	}
	for i, l := range ls {
		m := mark(l)
		if m != "" && m != headMark && !out.injected {
			return nil, fail(i, "this line is a mark of an injected file, but the file does not begin with %q: was a part of an injected file pasted here? Take the line out, or restore the head line", headMark)
		}
		if block != nil && m != endMark && m != beginMark {
			block.lines = append(block.lines, l.text)
			continue
		}
		fields := strings.Fields(l.text)
		switch m {
		case "":
			kept = append(kept, l)
		case headMark:
			if out.injected {
				return nil, fail(i, "a second %q: two injected files in one? Take one of them out", headMark)
			}
			if i > 1 {
				return nil, fail(i, "%q belongs on the first line: move it back there", headMark)
			}
			if len(fields) < 2 || fields[1] != "v1" {
				return nil, fail(i, "injected by another version of parrel than this one, which knows v1: use that version to take it back")
			}
			out.injected = true
			_, out.options, _ = strings.Cut(strings.TrimSpace(l.text), " v1")
			out.options = strings.TrimSpace(out.options)
		case aboutMark:
		case removedMark:
			_, t, _ := strings.Cut(l.text, removedMark)
			kept = append(kept, line{strings.TrimPrefix(t, " "), l.eol})
		case beginMark:
			if block != nil {
				return nil, fail(i, "%q begins before %q (line %d) has ended: put %q %s back", field(fields, 1), block.id, block.first, endMark, block.id)
			}
			if len(fields) < 3 {
				return nil, fail(i, "the mark has lost its checksum: restore the line, or delete it together with all up to %q", endMark)
			}
			block, sum = &made{id: fields[1], first: i + 1}, fields[2]
			if field(fields, 3) == noNewline {
				ours = len(kept)
			}
		case endMark:
			if block == nil {
				return nil, fail(i, "%q ends and has not begun: put its %q back, or delete this line together with what was made above it", field(fields, 1), beginMark)
			}
			if id := field(fields, 1); id != block.id {
				return nil, fail(i, "%q ends where %q (line %d) is open: put the marks back in order", id, block.id, block.first)
			}
			block.whole = checksum(block.lines) == sum
			out.blocks = append(out.blocks, *block)
			block = nil
		default:
			return nil, fail(i, "no mark that this version of parrel knows: restore the line, or delete it")
		}
	}
	if block != nil {
		return nil, fail(block.first-1, "%q begins and never ends: put the line %q back", block.id, endMark+" "+block.id)
	}
	if n := len(kept); n > 0 && n == ours {
		kept[n-1].eol = ""
	}
	out.text = mark1 + joinLines(kept)
	return out, nil
}

func field(f []string, i int) string {
	if i < len(f) {
		return f[i]
	}
	return ""
}

// insertion is a block to be put before a line.
type insertion struct {
	before int // 0-based line; the number of lines: at the end
	indent int
	id     string
	lines  []string
}

// splice comments lines out and puts blocks in. Insertions are in the order of
// their places.
func splice(text, head string, remove map[int]bool, ins []insertion) string {
	bomMark, rest := cutBOM(text)
	ls := splitLines(rest)
	eol := "\n"
	if len(ls) > 0 && ls[0].eol != "" {
		eol = ls[0].eol
	}
	var out []line
	add := func(s string) { out = append(out, line{s, eol}) }
	script := len(ls) > 0 && strings.HasPrefix(ls[0].text, "#!") // the head follows the interpreter's line
	if !script {
		add(head)
		add(aboutText)
	}
	for i := 0; i <= len(ls); i++ {
		for _, b := range ins {
			if b.before != i {
				continue
			}
			suffix := ""
			if n := len(out); n > 0 && out[n-1].eol == "" {
				out[n-1].eol = eol
				suffix = " " + noNewline
			}
			pad := strings.Repeat(" ", b.indent)
			add(pad + beginMark + " " + b.id + " " + checksum(b.lines) + suffix)
			for _, l := range b.lines {
				add(l)
			}
			add(pad + endMark + " " + b.id)
		}
		if i == len(ls) {
			break
		}
		l := ls[i]
		if remove[i] {
			if l.text != "" {
				l.text = " " + l.text
			}
			l.text = removedMark + l.text
		}
		out = append(out, l)
		if i == 0 && script {
			add(head)
			add(aboutText)
		}
	}
	return bomMark + joinLines(out)
}
