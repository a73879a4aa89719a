//go:build !unix

package overload

// RaiseDescriptors does nothing where there is no such limit.
func RaiseDescriptors() (int, error) { return 0, nil }
