# A server that speaks the mesh's mTLS itself: connect-native in Consul's words.
# Its address and port are those that it listens on.
service {
  name    = "pricing"
  id      = "pricing-1"
  address = "127.0.0.1"
  port    = 50051

  connect {
    native = true
  }
}
