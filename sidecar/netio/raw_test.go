package netio

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// A small message through kernel sockets costs no allocation.
func TestAllocations(t *testing.T) {
	a, b := osPair(t)
	msg, buf := make([]byte, 256), make([]byte, 1024)
	for name, f := range map[string]func(){
		"Write, Read":    func() { a.Write(msg); b.Read(buf) },
		"Write, ReadBuf": func() { a.Write(msg); p, _, _ := ReadBuf(b); PutBuf(p) },
		"WriteBuffers":   func() { WriteBuffers(a, msg[:100], msg[100:]); b.Read(buf) },
		"Alive":          func() { Alive(a) },
		"WaitReadable":   func() { a.Write(msg); b.WaitReadable(); b.Read(buf) },
	} {
		if n := testing.AllocsPerRun(200, f); n != 0 && !raceDetector {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// Nothing is lost or changed where the reader is slower than the writer.
func TestLargeWrites(t *testing.T) {
	eachPair(t, func(t *testing.T, a, b Conn) {
		big := make([]byte, 3<<20)
		for i := range big {
			big[i] = byte(i * 7 / 3)
		}
		done := make(chan error, 1)
		go func() {
			_, err := a.Write(big)
			if err == nil {
				_, err = WriteBuffers(a, big[:1<<20], big[1<<20:1<<20+3], big[1<<20+3:])
			}
			a.CloseWrite()
			done <- err
		}()
		got, err := io.ReadAll(b)
		if werr := <-done; err != nil || werr != nil {
			t.Fatal(err, werr)
		}
		if !bytes.Equal(got, append(bytes.Clone(big), big...)) {
			t.Errorf("%d bytes came, other than those that were sent", len(got))
		}
	})
}

func TestErrorsOfTheKernel(t *testing.T) {
	a, b := osPair(t)
	b.SetReadDeadline(time.Now().Add(-time.Second))
	for name, f := range map[string]func() error{
		"Read":         func() error { _, err := b.Read(make([]byte, 1)); return err },
		"ReadBuf":      func() error { _, _, err := ReadBuf(b); return err },
		"WaitReadable": b.WaitReadable,
	} {
		var op *net.OpError
		if err := f(); !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &op) || op.Op != "read" && op.Op != "wait" || !op.Timeout() {
			t.Errorf("%s after the deadline: %v", name, err)
		}
	}
	b.SetReadDeadline(time.Time{})
	a.Reset()
	if _, _, err := ReadBuf(b); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("ReadBuf after a reset: %v", err)
	}
	if _, err := b.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("Write after a reset: %v", err)
	}
	b.Close()
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read after Close: %v", err)
	}
	if _, err := WriteBuffers(b, []byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("WriteBuffers after Close: %v", err)
	}
}

// Close ends a wait, and a wait for bytes holds no buffer.
func TestCloseEndsReadBuf(t *testing.T) {
	eachPair(t, func(t *testing.T, a, b Conn) {
		done := make(chan error, 1)
		go func() { _, _, err := ReadBuf(b); done <- err }()
		b.Close()
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("%v", err)
		}
	})
}

func BenchmarkMessage(b *testing.B) {
	x, y := osPair(b)
	msg := make([]byte, 256)
	b.ReportAllocs()
	for b.Loop() {
		x.Write(msg)
		p, _, _ := ReadBuf(y)
		PutBuf(p)
	}
}

// BenchmarkMessageNet is the same through package net.
func BenchmarkMessageNet(b *testing.B) {
	x, y := osPair(b)
	cx, cy := x.(*osConn).kernelConn, y.(*osConn).kernelConn
	msg, buf := make([]byte, 256), make([]byte, BufSize)
	b.ReportAllocs()
	for b.Loop() {
		cx.Write(msg)
		cy.Read(buf)
	}
}
