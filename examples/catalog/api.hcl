# Two instances of api in one file. The second takes a third of the first one's requests.
services {
  name    = "api"
  id      = "api-1"
  port    = 8081
  weights = { passing = 3, warning = 1 }
  check {
    http     = "http://127.0.0.1:8081/health"
    interval = "5s"
  }
  connect {
    sidecar_service {
      port = 21001
      proxy { upstreams = [ { destination_name = "ledger"  local_bind_port = 9291 } ] }
    }
  }
}

services {
  name    = "api"
  id      = "api-2"
  port    = 8082
  weights = { passing = 1, warning = 1 }
  check {
    http     = "http://127.0.0.1:8082/health"
    interval = "5s"
  }
  connect {
    sidecar_service {
      port = 21002
      proxy { upstreams = [ { destination_name = "ledger"  local_bind_port = 9292 } ] }
    }
  }
}
