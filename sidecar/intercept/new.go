package intercept

import (
	"errors"
	"fmt"
)

// New is a Manager of one network namespace. It asks the kernel nothing yet.
func New(o Options) (Manager, error) {
	if int(o.Mode) >= len(modes) {
		return nil, fmt.Errorf("intercept: there is no mechanism %s: use nft", o.Mode)
	}
	return newManager(o)
}

// Print is c in the words of nft(8), to be read or fed to `nft -f -`, with the
// routes as comments. It changes nothing; cgroups that the configuration names are
// looked up.
func Print(c Config) (string, error) { return printConfig(c) }

// ErrForeign says that the table's name is taken by somebody else's.
var ErrForeign = errors.New("intercept: there is a table inet parrel that parrel did not make: nothing was changed; look at it (nft list table inet parrel), and rename or remove it (nft delete table inet parrel)")

// ErrCleaned says that the rules that were held are gone since somebody cleaned
// them.
var ErrCleaned = errors.New("intercept: the rules were cleaned, by this process or by another one: nothing is held any longer")
