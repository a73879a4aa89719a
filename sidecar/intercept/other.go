//go:build !linux

package intercept

import "errors"

var errLinux = errors.New("intercept: transparent mode is Linux's (nftables): declare upstreams with ports here")

func newManager(Options) (Manager, error) { return nil, errLinux }

func printConfig(Config) (string, error) { return "", errLinux }

// LocalResolvers are the users as whom the host's own resolvers run.
func LocalResolvers(string) ([]uint32, error) { return nil, errLinux }

// Cgroups: there are none.
func Cgroups(Config) (map[string]uint64, error) { return nil, errLinux }
