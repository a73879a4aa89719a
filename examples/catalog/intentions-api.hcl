# Who may call api. What `consul config write intentions-api.hcl` takes.
Kind = "service-intentions"
Name = "api"
Sources = [
  {
    Name   = "web"
    Action = "allow"
  },
  {
    Name   = "reports"
    Action = "allow"
  },
  {
    Name        = "*"
    Action      = "deny"
    Description = "nobody else"
  }
]
