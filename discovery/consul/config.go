package consul

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/parrel-mesh/parrel/discovery"
)

// Config says which agent to read. Zero values are the environment's
// (CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN, CONSUL_HTTP_TOKEN_FILE, CONSUL_CACERT,
// CONSUL_CAPATH, CONSUL_CLIENT_CERT, CONSUL_CLIENT_KEY, CONSUL_HTTP_SSL,
// CONSUL_TLS_SERVER_NAME, CONSUL_NAMESPACE, CONSUL_PARTITION …) for the first
// group and the defaults named beside them for the second.
type Config struct {
	Address       string
	Token         string
	TokenFile     string
	CAFile        string
	CAPath        string
	CertFile      string
	KeyFile       string
	TLSServerName string
	Namespace     string
	Partition     string
	Datacenter    string // the agent's own

	Watches         int           // 100: services' queries kept open; what is beyond is swept
	SweepRate       int           // 500: reads per second of a sweep
	Wait            time.Duration // 60s: how long a blocking query may wait
	Pulse           time.Duration // 5s: how often a silent catalogue is asked whether it still has a leader
	Coalesce        time.Duration // 100ms: between two deliveries of one service
	MaxBackoff      time.Duration // 4s
	MaxAge          time.Duration // 10s: an answer older than this makes the catalogue stale
	FirstDelivery   time.Duration // 30s: how long the first delivery waits for a service that does not answer
	Confirm         time.Duration // 250ms: between the readings that confirm a loss
	ConfirmCollapse time.Duration // 2s: the same where most of the mesh vanished
	Guard           discovery.GuardConfig

	Log  *slog.Logger                                                         // slog.Default()
	Rand func() float64                                                       // rand.Float64: jitter
	Dial func(ctx context.Context, network, address string) (net.Conn, error) // net.Dialer
}

// maxSockets bounds the connections to one agent: every blocking query has
// one, the rest are shared by short reads.
const maxSockets = 140

// shortSockets bounds those of a client that only asks briefly: fifty workloads
// that start at once wait for each other, and the agent's limit is left to others.
const shortSockets = 8

func short(t *http.Transport) {
	t.MaxConnsPerHost, t.MaxIdleConnsPerHost, t.MaxIdleConns = shortSockets, shortSockets, shortSockets
}

func (c *Config) fill() error {
	c.Watches = cmp.Or(c.Watches, 100)
	c.SweepRate = cmp.Or(c.SweepRate, 500)
	c.Wait = cmp.Or(c.Wait, time.Minute)
	c.Pulse = cmp.Or(c.Pulse, 5*time.Second)
	c.Coalesce = cmp.Or(c.Coalesce, 100*time.Millisecond)
	c.MaxBackoff = cmp.Or(c.MaxBackoff, 4*time.Second)
	c.MaxAge = cmp.Or(c.MaxAge, 10*time.Second)
	c.FirstDelivery = cmp.Or(c.FirstDelivery, 30*time.Second)
	c.Confirm = cmp.Or(c.Confirm, 250*time.Millisecond)
	c.ConfirmCollapse = cmp.Or(c.ConfirmCollapse, 2*time.Second)
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Rand == nil {
		c.Rand = rand.Float64
	}
	if c.Watches < 1 || c.Watches > 100 {
		return errors.New("consul: Watches must be from 1 to 100, so that an agent's limit of 200 connections per client is kept")
	}
	return nil
}

// client makes Consul's client. Its errors never hold the token.
func (c *Config) client() (*api.Client, *http.Transport, error) {
	conf := api.DefaultConfig() // reads the environment
	transport := conf.Transport
	transport.MaxConnsPerHost = maxSockets
	transport.MaxIdleConnsPerHost = maxSockets
	transport.MaxIdleConns = maxSockets
	if c.Dial != nil {
		transport.DialContext = c.Dial
		transport.Proxy = nil
	}
	conf.Address = cmp.Or(c.Address, conf.Address)
	if c.Token != "" {
		conf.Token, conf.TokenFile = c.Token, ""
	}
	conf.TokenFile = cmp.Or(c.TokenFile, conf.TokenFile)
	conf.Namespace = cmp.Or(c.Namespace, conf.Namespace)
	conf.Partition = cmp.Or(c.Partition, conf.Partition)
	conf.TLSConfig.CAFile = cmp.Or(c.CAFile, conf.TLSConfig.CAFile)
	conf.TLSConfig.CAPath = cmp.Or(c.CAPath, conf.TLSConfig.CAPath)
	conf.TLSConfig.CertFile = cmp.Or(c.CertFile, conf.TLSConfig.CertFile)
	conf.TLSConfig.KeyFile = cmp.Or(c.KeyFile, conf.TLSConfig.KeyFile)
	conf.TLSConfig.Address = cmp.Or(c.TLSServerName, conf.TLSConfig.Address)
	client, err := api.NewClient(conf)
	if err != nil {
		return nil, nil, fmt.Errorf("consul: the agent's address or TLS files are wrong: %w; mend CONSUL_HTTP_ADDR, CONSUL_CACERT, CONSUL_CLIENT_CERT or their flags", err)
	}
	return client, transport, nil
}
