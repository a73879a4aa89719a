// Command fuzz runs every fuzz target of the module, one after the other, for
// the time given as its argument (default 60s) each.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

var target = regexp.MustCompile(`(?m)^func (Fuzz[A-Za-z0-9_]+)\(`)

func main() {
	each := "60s"
	if len(os.Args) > 1 {
		each = os.Args[1]
	}
	if _, err := time.ParseDuration(each); err != nil {
		fail("%q is not a duration such as 60s: %v", each, err)
	}
	var failed []string
	n := 0
	err := filepath.WalkDir(".", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range target.FindAllStringSubmatch(string(b), -1) {
			n++
			pkg := "./" + filepath.Dir(path)
			fmt.Printf("%s %s for %s\n", pkg, m[1], each)
			cmd := exec.Command("go", "test", pkg, "-run=^$", "-fuzz=^"+m[1]+"$", "-fuzztime="+each)
			cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
			if err := cmd.Run(); err != nil {
				failed = append(failed, pkg+" "+m[1])
			}
		}
		return nil
	})
	if err != nil {
		fail("%v", err)
	}
	if n == 0 {
		fail("no fuzz target found: run this from the top of the module")
	}
	if len(failed) > 0 {
		fail("failed: %s", strings.Join(failed, ", "))
	}
	fmt.Printf("fuzz: %d targets, none failed\n", n)
}

func fail(format string, a ...any) {
	fmt.Fprintf(os.Stderr, "test/fuzz: "+format+"\n", a...)
	os.Exit(1)
}
