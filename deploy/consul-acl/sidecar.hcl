# What the sidecar of the service SERVICE does with its agent: find and register this service and its proxy, report
# their health, declare the service's protocol. Put the service's name in: one policy and one token for each service.
service "SERVICE" {
  policy = "write"
}
service "SERVICE-sidecar-proxy" {
  policy = "write"
}
# The agent's own address, for services that name none.
agent_prefix "" {
  policy = "read"
}
