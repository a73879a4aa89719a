# Config entries, several in one file as an agent's configuration has them.
config_entries {
  bootstrap = [
    {
      kind = "proxy-defaults"
      name = "global"
      config { local_connect_timeout_ms = 1000 }
    },
    {
      kind     = "service-defaults"
      name     = "web"
      protocol = "http"
    },
    {
      kind     = "service-defaults"
      name     = "api"
      protocol = "http"
      max_inbound_connections = 1000
      upstream_config {
        overrides = [ { name = "ledger"  connect_timeout_ms = 500 } ]
      }
    },
    {
      kind     = "service-defaults"
      name     = "ledger"
      protocol = "tcp"
    }
  ]
}
