package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/parrel-mesh/parrel/mtls/ca"
)

func tokenCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "token",
		Short: "Make tokens that let sidecars join",
	}, tokenCreateCommand())
}

func tokenCreateCommand() *cobra.Command {
	var (
		dir, domain string
		files       []string
		mode        uint32
		spec        ca.TokenSpec
	)
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a join token and print it",
		Long: `Makes a join token on a host that has the CA's directory, and prints it.

The token is short-lived, can be used once for each service that it names, gives
the identity of these services and no other, and carries the hash of the root's
key, by which a sidecar that has never been here knows the control plane.

    parrel token create --ca-dir /var/lib/parrel/ca --service web > web.token

With --to SERVICE=FILE, once for each instance, it makes a token for each and
writes them into files instead.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(spec.Services) == 0 && len(files) == 0 {
				return errors.New("token create: for which service? Give --service NAME, once for each service that will join with the token")
			}
			cfg := ca.Config{}
			if domain == "" || dir == "" {
				if err := haveCA(dir); err != nil {
					return fmt.Errorf("token create: %w", err)
				}
			} else {
				td, err := spiffeid.TrustDomainFromString(domain)
				if err != nil {
					return fmt.Errorf("token create: --trust-domain %q: %w; write it as mesh.example", domain, err)
				}
				cfg.TrustDomain = td
			}
			authority, err := ca.Open(dir, cfg)
			if err != nil {
				return err
			}
			for _, f := range files {
				if err := mintInto(authority, spec, f, mode); err != nil {
					return err
				}
			}
			if len(spec.Services) == 0 {
				return nil
			}
			token, err := authority.Mint(spec)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), token)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "ca-dir", "", "the CA's directory")
	f.StringVar(&domain, "trust-domain", "", "trust domain; needed only where the CA is made by this command")
	f.StringArrayVar(&spec.Services, "service", nil, "service that may join; repeat for several")
	f.StringArrayVar(&files, "to", nil, "SERVICE=FILE: a token of its own for an instance of SERVICE, into FILE; repeat for each")
	f.Uint32Var(&mode, "file-mode", 0o600, "with --to: permissions of the files, such as 0644 where the sidecar is another user")
	f.StringVar(&spec.Datacenter, "datacenter", "dc1", "datacenter of the services")
	f.StringVar(&spec.Namespace, "namespace", "", "namespace of the services (default \"default\")")
	f.StringVar(&spec.Partition, "partition", "", "partition of the services (default \"default\")")
	f.DurationVar(&spec.TTL, "ttl", 30*time.Minute, "how long the token can be used")
	return cmd
}

// mintInto makes a token for SERVICE=FILE and puts it there at once.
func mintInto(authority *ca.CA, spec ca.TokenSpec, to string, mode uint32) error {
	service, file, ok := strings.Cut(to, "=")
	if !ok || service == "" || file == "" {
		return fmt.Errorf("token create: --to %q: write SERVICE=FILE", to)
	}
	if mode&^0o777 != 0 || mode&0o400 == 0 {
		return fmt.Errorf("token create: --file-mode %#o: give permissions such as 0600 or 0644", mode)
	}
	spec.Services = []string{service}
	token, err := authority.Mint(spec)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), ".token-*")
	if err != nil {
		return fmt.Errorf("token create: --to: %w", err)
	}
	_, err = tmp.WriteString(token + "\n")
	err = errors.Join(err, tmp.Chmod(os.FileMode(mode)), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("token create: --to: %w", err), os.Remove(tmp.Name()))
	}
	return nil
}
