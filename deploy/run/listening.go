package run

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// Listening says whether somebody of this network namespace accepts connections
// at an address, HOST:PORT or a Unix socket's path. It looks into the kernel's
// tables, so that the application sees no connection that nobody meant; where
// there is no /proc it connects.
func Listening(address string) (bool, error) {
	if strings.HasPrefix(address, "/") || strings.HasPrefix(address, "@") {
		return answers("unix", address), nil
	}
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		return false, fmt.Errorf("run: %q is no address: %w", address, err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return false, fmt.Errorf("run: %q is no port: %w", portText, err)
	}
	ip, _ := netip.ParseAddr(host) // a name: any address of this host
	none := true
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(table)
		if errors.Is(err, fs.ErrNotExist) {
			continue // no IPv6, or no /proc
		}
		if err != nil {
			return false, fmt.Errorf("run: whether %s is open: %w", address, err)
		}
		none = false
		found, err := inTable(f, ip, uint16(port))
		f.Close()
		if found || err != nil {
			return found, err
		}
	}
	return none && answers("tcp", address), nil
}

func answers(network, address string) bool {
	c, err := net.DialTimeout(network, address, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// inTable looks for a listening socket in /proc/net/tcp or tcp6 (proc(5)): the
// local address is hexadecimal in words of the machine's byte order, its port
// after the colon; state 0A is TCP_LISTEN.
func inTable(r io.Reader, ip netip.Addr, port uint16) (bool, error) {
	lines := bufio.NewScanner(r)
	want := fmt.Sprintf("%04X", port)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 4 || f[3] != "0A" {
			continue
		}
		host, p, ok := strings.Cut(f[1], ":")
		if !ok || p != want {
			continue
		}
		at, ok := tableAddress(host)
		if ok && (!ip.IsValid() || at.IsUnspecified() || ip.IsUnspecified() || at == ip.Unmap()) {
			return true, nil
		}
	}
	if err := lines.Err(); err != nil {
		return false, fmt.Errorf("run: the kernel's table of sockets: %w", err)
	}
	return false, nil
}

func tableAddress(s string) (netip.Addr, bool) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b)%4 != 0 {
		return netip.Addr{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	a, ok := netip.AddrFromSlice(b)
	return a.Unmap(), ok
}
