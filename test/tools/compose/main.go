// Command composecheck reads a compose file as Compose v2 does, by Compose v2's
// own library, and prints the project that it understood.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "composecheck FILE")
		os.Exit(2)
	}
	text, err := read(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Stdout.Write(text)
}

func read(file string) ([]byte, error) {
	o, err := cli.NewProjectOptions([]string{file}, cli.WithOsEnv, cli.WithDotEnv, cli.WithName("check"), cli.WithProfiles([]string{"*"}))
	if err != nil {
		return nil, err
	}
	p, err := o.LoadProject(context.Background())
	if err != nil {
		return nil, err
	}
	return p.MarshalYAML()
}
