# The shop's front: HTTP on 8080, calls api. What `consul services register web.hcl` takes.
service {
  name = "web"
  id   = "web-1"
  port = 8080
  meta = { version = "1.4.2" }

  check {
    id       = "web-http"
    http     = "http://127.0.0.1:8080/health"
    interval = "5s"
    timeout  = "1s"
  }

  connect {
    sidecar_service {
      port = 21000
      proxy {
        upstreams = [
          {
            destination_name   = "api"
            local_bind_port    = 9191
            config {
              connect_timeout_ms = 2000
              limits { max_connections = 500 }
            }
          }
        ]
      }
    }
  }
}
