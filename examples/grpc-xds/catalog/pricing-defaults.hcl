Kind     = "service-defaults"
Name     = "pricing"
Protocol = "grpc"
