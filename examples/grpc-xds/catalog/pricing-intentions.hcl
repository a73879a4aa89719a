Kind = "service-intentions"
Name = "pricing"
Sources = [
  {
    Name   = "till"
    Action = "allow"
  },
]
