//go:build !linux

package netio

import "errors"

var errNoSplice = errors.New("netio: not spliced")

func canSplice(_, _ *osConn) bool { return false }

func (*copier) splice(_, _ *osConn) error { return errNoSplice }
