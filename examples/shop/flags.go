package shop

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// BindFlags declares the program's flags on fs and returns the Config that they
// fill. upstream NAME=HOST:PORT may be repeated.
func BindFlags(fs *pflag.FlagSet) *Config {
	c := &Config{}
	fs.StringVar(&c.Role, "role", "", "which program: "+strings.Join(Roles, ", "))
	fs.StringVar(&c.Instance, "instance", "", "name shown in answers")
	fs.StringVar(&c.Version, "version", "", "version shown in answers")
	fs.StringVar(&c.Listen, "listen", "127.0.0.1:0", "address to listen on")
	fs.DurationVar(&c.Timeout, "timeout", 5*time.Second, "how long one call of an upstream may take")
	fs.Var(upstreams{c}, "upstream", "upstream as NAME=HOST:PORT; repeat for each")
	return c
}

type upstreams struct{ c *Config }

func (u upstreams) String() string { return "" }
func (u upstreams) Type() string   { return "NAME=HOST:PORT" }

func (u upstreams) Set(v string) error {
	name, addr, ok := strings.Cut(v, "=")
	if !ok || name == "" || !strings.Contains(addr, ":") {
		return fmt.Errorf("%q is not NAME=HOST:PORT", v)
	}
	if u.c.Upstream == nil {
		u.c.Upstream = map[string]string{}
	}
	u.c.Upstream[name] = addr
	return nil
}
