package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/parrel-mesh/parrel/deploy/inject"
)

func injectCommand() *cobra.Command {
	var o inject.Options
	var uninject bool
	cmd := &cobra.Command{
		Use:   "inject FILE",
		Short: "Put a sidecar beside each service of a compose file, or of a systemd unit",
		Long: `Reads a compose file ("-": standard input) and writes to standard output one in
which each service has a sidecar: the service joins its sidecar's network
namespace and starts when that is ready; ports, networks, aliases and whatever
else belongs to the namespace move to the sidecar, which registers the service
with Consul. Replicas become pairs of their own, under one network alias.
docker-compose 1.29 and Compose v2 read the result. No file that the compose file
names is read; what had to be left as it is, and why, is said on standard error.

The file is edited by lines. --uninject gives the original back byte for byte,
comments and anchors included, with what was edited since: only edits of lines
that parrel made are refused, with their place. Injecting an injected file
updates it, with the options of the first time where none are given.

    parrel inject compose.yaml > compose.mesh.yaml
    parrel inject --uninject compose.mesh.yaml > compose.yaml

Labels of a service say what the file does not: parrel.inject, parrel.port and
others, which docs/inject.md lists.`,
		Args: oneArg("FILE", "compose.yaml > compose.mesh.yaml"),
		RunE: func(cmd *cobra.Command, args []string) error {
			file, text, err := readCompose(cmd, args[0])
			if err != nil {
				return err
			}
			if uninject {
				out, err := inject.Uninject(file, text, o.Overwrite)
				if err != nil {
					return err
				}
				_, err = io.WriteString(cmd.OutOrStdout(), out)
				return err
			}
			res, err := inject.Compose(file, text, o)
			if err != nil {
				return err
			}
			for _, n := range res.Notes {
				fmt.Fprintln(cmd.ErrOrStderr(), n)
			}
			if len(res.Injected) == 0 {
				return fmt.Errorf("inject: %s has no service that can get a sidecar: the reasons stand above", file)
			}
			_, err = io.WriteString(cmd.OutOrStdout(), res.Text)
			return err
		},
	}
	f := cmd.Flags()
	f.BoolVar(&uninject, "uninject", false, "give back the file as it was before")
	f.BoolVar(&o.Overwrite, "overwrite", false, "let edits of lines that parrel made go")
	f.StringVar(&o.Image, "image", "", "image of the sidecars (default "+inject.DefaultImage+")")
	f.StringVar(&o.ControlPlane, "grpc-addr", "", "the control plane, HOST:PORT as the sidecars reach it; several separated by commas (default "+inject.DefaultControlPlane+")")
	f.StringVar(&o.Consul, "http-addr", "", "Consul agent, HOST:PORT as the sidecars reach it (default "+inject.DefaultConsul+")")
	f.StringVar(&o.Mode, "mode", "", "transparent, or explicit: upstreams on ports of 127.0.0.1 only (default "+inject.Transparent+")")
	f.IntVar(&o.UID, "proxy-uid", 0, fmt.Sprintf("user id of the sidecar's process, which no application may have (default %d)", inject.DefaultUID))
	f.StringVar(&o.TokenDir, "token-dir", "", "folder with a folder for each instance, which holds its join token in the file token (default "+inject.DefaultTokenDir+")")
	f.StringVar(&o.TokenVolume, "token-volume", "", "instead of --token-dir: named volumes PREFIX-INSTANCE")
	f.StringVar(&o.IDPrefix, "id-prefix", "", "before the id of each registration, where several projects share an agent")
	f.StringArrayVar(&o.Env, "env", nil, "KEY=VALUE in the environment of every sidecar, such as CONSUL_HTTP_TOKEN='${CONSUL_HTTP_TOKEN}'; repeat for several")
	f.StringArrayVar(&o.After, "after", nil, "SERVICE or SERVICE:CONDITION of the file that every sidecar waits for; repeat for several")
	f.DurationVar(&o.HealthEvery, "health-interval", 0, "how often the engine asks a sidecar whether it is ready (default "+inject.DefaultHealthEvery.Round(time.Second).String()+")")
	cmd.AddCommand(injectSystemdCommand())
	return cmd
}

// readCompose reads the file, or standard input, and says how to name it.
func readCompose(cmd *cobra.Command, name string) (file, text string, err error) {
	var b []byte
	if name == "-" {
		name = "stdin"
		b, err = io.ReadAll(io.LimitReader(cmd.InOrStdin(), maxCompose+1))
	} else {
		info, e := os.Stat(name)
		if e == nil && info.IsDir() {
			return "", "", fmt.Errorf("inject: %s is a folder: name the compose file in it", name)
		}
		b, err = os.ReadFile(name)
	}
	if err != nil {
		return "", "", fmt.Errorf("inject: %w", err)
	}
	if len(b) > maxCompose {
		return "", "", errors.New("inject: " + name + " is larger than 8 MB: is this a compose file?")
	}
	return name, string(b), nil
}

const maxCompose = 8 << 20
