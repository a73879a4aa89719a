//go:build !linux

package main

import "context"

// settle does nothing where there is no madvise(2) of Linux.
func settle(context.Context) {}

// staySmall does nothing either.
func staySmall(context.Context) {}
