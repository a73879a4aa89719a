# A client that nobody calls. It is registered so that it has an identity and
# may ask the control plane.
service {
  name = "till"
  id   = "till-1"

  connect {
    native = true
  }
}
