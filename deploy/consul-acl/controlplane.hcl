# What a control plane reads of Consul, and the one thing that it writes: which join tokens were used.
node_prefix "" {
  policy = "read"
}
service_prefix "" {
  policy     = "read"
  intentions = "read"
}
agent_prefix "" {
  policy = "read"
}
# Entries of the kind exported-services; without it they are not seen, and nothing says so.
mesh = "read"
key_prefix "parrel/" {
  policy = "write"
}
