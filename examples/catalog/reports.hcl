# A transparent service: it names no upstream and calls api by its name, on any port.
service {
  name = "reports"
  id   = "reports-1"
  port = 8090

  check {
    id       = "reports-tcp"
    tcp      = "127.0.0.1:8090"
    interval = "5s"
  }

  connect {
    sidecar_service {
      port = 21010
      proxy {
        mode = "transparent"
      }
    }
  }
}
