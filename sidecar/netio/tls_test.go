package netio

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// tlsConfigs are a server's and a client's that trusts it.
func tlsConfigs(t testing.TB) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"a.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, x, x, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	server = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		MinVersion: tls.VersionTLS13, DynamicRecordSizingDisabled: true}
	client = &tls.Config{RootCAs: pool, ServerName: "a.test", MinVersion: tls.VersionTLS13, DynamicRecordSizingDisabled: true}
	return server, client
}

// spy counts what passes to the connection below.
type spy struct {
	Conn
	writes, written atomic.Int64
}

func (s *spy) Unwrap() Conn { return s.Conn }

func (s *spy) Write(p []byte) (int, error) {
	s.writes.Add(1)
	s.written.Add(int64(len(p)))
	return s.Conn.Write(p)
}

// tlsPair shakes hands over a pair; the spies are below.
func tlsPair(t testing.TB, pair func(testing.TB) (Conn, Conn)) (c, s *TLSConn, cs, ss *spy) {
	t.Helper()
	a, b := pair(t)
	cs, ss = &spy{Conn: a}, &spy{Conn: b}
	server, client := tlsConfigs(t)
	c, s = ClientTLS(cs, client), ServerTLS(ss, server)
	done := make(chan error, 1)
	go func() { done <- c.Handshake(t.Context()) }()
	if err := s.HandshakeBefore(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c, s, cs, ss
}

func eachTLS(t *testing.T, f func(t *testing.T, c, s *TLSConn, cs, ss *spy)) {
	for name, pair := range map[string]func(testing.TB) (Conn, Conn){"kernel": osPair, "memory": memPair} {
		t.Run(name, func(t *testing.T) {
			c, s, cs, ss := tlsPair(t, pair)
			f(t, c, s, cs, ss)
		})
	}
}

// Whatever the sizes of writes and the ways of reading, the same bytes arrive.
func TestTLSTransfer(t *testing.T) {
	eachTLS(t, func(t *testing.T, c, s *TLSConn, _, _ *spy) {
		rnd := mrand.New(mrand.NewPCG(1, 2))
		want := make([]byte, 6<<20)
		for i := range want {
			want[i] = byte(rnd.Uint32())
		}
		send := func(c *TLSConn, rnd *mrand.Rand) error {
			for rest := want; len(rest) > 0; {
				n := min(1+rnd.IntN(1<<uint(1+rnd.IntN(19))), len(rest))
				var err error
				switch rnd.IntN(3) {
				case 0:
					_, err = c.Write(rest[:n])
				case 1:
					_, err = WriteBuffers(c, rest[:n/3], rest[n/3:n])
				default:
					b := take(n > BufSize)
					n = copy(b.bytes(), rest[:n])
					err = c.writeTaken(&b, n)
					b.release()
				}
				if err != nil {
					return err
				}
				rest = rest[n:]
			}
			return c.CloseWrite()
		}
		receive := func(c *TLSConn, rnd *mrand.Rand) ([]byte, error) {
			var got []byte
			buf := make([]byte, 200<<10)
			for {
				var n int
				var err error
				switch rnd.IntN(4) {
				case 0:
					n, err = c.Read(buf[:1+rnd.IntN(100)])
					got = append(got, buf[:n]...)
				case 1:
					n, err = c.Read(buf)
					got = append(got, buf[:n]...)
				case 2:
					err = c.WaitReadable()
				default:
					var b taken
					b, n, err = c.readTaken(rnd.IntN(2) == 0)
					got = append(got, b.bytes()[:n]...)
					b.release()
				}
				if err == io.EOF {
					return got, nil
				}
				if err != nil {
					return got, err
				}
			}
		}
		var wg sync.WaitGroup
		for i, pair := range [][2]*TLSConn{{c, s}, {s, c}} {
			wg.Go(func() {
				if err := send(pair[0], mrand.New(mrand.NewPCG(uint64(i), 1))); err != nil {
					t.Error("send:", err)
				}
			})
			wg.Go(func() {
				got, err := receive(pair[1], mrand.New(mrand.NewPCG(uint64(i), 2)))
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("received %d bytes, the same: %t, %v", len(got), bytes.Equal(got, want), err)
				}
			})
		}
		wg.Wait()
		if !c.rec.in.none() || !s.rec.in.none() || !c.rec.out.none() || !s.rec.out.none() {
			t.Error("a buffer is held though nothing is under way")
		}
	})
}

// Many records are one write below, head and body are one record.
func TestTLSWritesTogether(t *testing.T) {
	eachTLS(t, func(t *testing.T, c, s *TLSConn, cs, _ *spy) {
		go io.Copy(io.Discard, s)
		before := cs.writes.Load()
		if _, err := c.Write(make([]byte, 7*maxPlain)); err != nil {
			t.Fatal(err)
		}
		if n := cs.writes.Load() - before; n != 1 {
			t.Errorf("7 records in %d writes, want 1", n)
		}
		before, bytes := cs.writes.Load(), cs.written.Load()
		if _, err := WriteBuffers(c, make([]byte, 200), make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		const overhead = recordHeader + 1 + 16 // header, content type, tag
		if n, m := cs.writes.Load()-before, cs.written.Load()-bytes; n != 1 || m != 1200+overhead {
			t.Errorf("head and body: %d bytes in %d writes, want %d in 1", m, n, 1200+overhead)
		}
	})
}

// While a record is not complete, a waiting reader holds no buffer.
func TestTLSPartialRecordHoldsNoBuffer(t *testing.T) {
	server, client := tlsConfigs(t)
	a, b := memPair(t)
	s := ServerTLS(b, server)
	w := &cutter{Conn: a}
	tc := tls.Client(w, client)
	done := make(chan error, 1)
	go func() { done <- tc.Handshake() }()
	if err := s.HandshakeBefore(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	w.cut = 100
	tc.Write(make([]byte, 1000))
	s.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, _, err := ReadBuf(s); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("half a record: %v", err)
	}
	if s.buffered() || !s.rec.in.none() {
		t.Error("a buffer is held, or said to be")
	}
	s.SetReadDeadline(time.Time{})
	a.Write(w.rest) // the rest makes it whole
	p, n, err := ReadBuf(s)
	if n != 1000 || err != nil {
		t.Fatalf("%d bytes, %v", n, err)
	}
	PutBuf(p)
	a.Write([]byte{23, 3, 3}) // an end inside a record is a failure
	a.Close()
	if _, _, err := ReadBuf(s); err != io.ErrUnexpectedEOF {
		t.Errorf("cut inside a record: %v", err)
	}
}

// cutter sends only the first bytes of a write.
type cutter struct {
	Conn
	cut  int
	rest []byte
}

func (c *cutter) Write(p []byte) (int, error) {
	if c.cut == 0 {
		return c.Conn.Write(p)
	}
	c.rest = append(c.rest, p[c.cut:]...)
	if _, err := c.Conn.Write(p[:c.cut]); err != nil {
		return 0, err
	}
	c.cut = 0
	return len(p), nil
}

func TestTLSAliveAndParked(t *testing.T) {
	eachTLS(t, func(t *testing.T, c, s *TLSConn, _, _ *spy) {
		// Session tickets are under way to the client.
		c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		_ = c.below().WaitReadable()
		c.SetReadDeadline(time.Time{})
		if !Alive(c) || !Alive(s) {
			t.Fatal("said to be dead after the handshake")
		}
		var i Idler
		defer i.Close()
		w := make(woken, 10)
		if !i.Park(s, w) {
			t.Fatal("cannot be parked")
		}
		c.Write(make([]byte, 3*maxPlain))
		w.await(t, "bytes came")
		got := 0
		for got < maxPlain {
			b, n, err := ReadBuf(s)
			if err != nil {
				t.Fatal(err)
			}
			PutBuf(b)
			got += n
		}
		for got < 3*maxPlain { // what was read ahead wakes at once
			i.Park(s, w)
			w.await(t, "a record was read ahead or comes")
			b, n, err := ReadBuf(s)
			if err != nil {
				t.Fatal(err)
			}
			PutBuf(b)
			got += n
		}
		i.Park(s, w)
		w.never(t, "all was read")
		c.CloseWrite()
		w.await(t, "close_notify")
		s.SetReadDeadline(time.Now().Add(10 * time.Second))
		if Alive(s) {
			t.Error("alive after close_notify")
		}
		if _, _, err := ReadBuf(s); err != io.EOF {
			t.Errorf("after close_notify: %v", err)
		}
	})
}

// Big buffers are given back by whoever closes, whatever was not read.
func TestTLSCloseGivesBuffersBack(t *testing.T) {
	for range 3 * bigMost {
		c, s, _, _ := tlsPair(t, memPair)
		go c.Write(make([]byte, 1<<20))
		for !s.rec.bulk {
			if _, err := s.Read(make([]byte, 20000)); err != nil {
				t.Fatal(err)
			}
		}
		s.Read(make([]byte, 1))
		s.Reset()
		c.Reset()
	}
	for deadline := time.Now().Add(10 * time.Second); bigHeld.Load() != 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%d big buffers are held", bigHeld.Load())
		}
	}
}

func TestTLSHandshakeEnds(t *testing.T) {
	server, _ := tlsConfigs(t)
	_, b := memPair(t)
	if err := ServerTLS(b, server).HandshakeBefore(time.Now().Add(20 * time.Millisecond)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("at the deadline: %v", err)
	}
	_, b = memPair(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := ServerTLS(b, server).Handshake(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("at the context's deadline: %v", err)
	}
	_, b = memPair(t)
	why := errors.New("why")
	ctx2, cancel2 := context.WithCancelCause(t.Context())
	go cancel2(why)
	if err := ServerTLS(b, server).Handshake(ctx2); err != why {
		t.Errorf("cancelled: %v", err)
	}
}

// clientKeys logs the secrets of a connection.
type clientKeys struct{ bytes.Buffer }

func (k *clientKeys) secret(t *testing.T, label string) []byte {
	t.Helper()
	for line := range strings.Lines(k.String()) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == label {
			b, err := hex.DecodeString(f[2])
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
	}
	t.Fatalf("no %s in the key log", label)
	return nil
}

// expandLabel is HKDF-Expand-Label (RFC 8446, 7.1).
func expandLabel(t *testing.T, secret []byte, label string, n int) []byte {
	t.Helper()
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(info, byte(len("tls13 "+label)))
	info = append(append(info, "tls13 "+label...), 0)
	b, err := hkdf.Expand[hash.Hash](sha256.New, secret, string(info), n)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A peer that sends nothing but key updates is cut off.
func TestTLSKeyUpdateFlood(t *testing.T) {
	server, client := tlsConfigs(t)
	var keys clientKeys
	client.KeyLogWriter = &keys
	a, b := memPair(t)
	s, tc := ServerTLS(b, server), tls.Client(a, client)
	done := make(chan error, 1)
	go func() { done <- tc.Handshake() }()
	if err := s.HandshakeBefore(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if id := tc.ConnectionState().CipherSuite; id != tls.TLS_AES_128_GCM_SHA256 {
		t.Fatalf("cipher suite %x: the test knows another", id)
	}
	secret := keys.secret(t, "CLIENT_TRAFFIC_SECRET_0")
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 1000 { // each with the keys that the one before made
			block, err := aes.NewCipher(expandLabel(t, secret, "key", 16))
			if err != nil {
				t.Error(err)
				return
			}
			gcm, err := cipher.NewGCM(block)
			if err != nil {
				t.Error(err)
				return
			}
			inner := []byte{24, 0, 0, 1, 1, 22} // key_update, update_requested; handshake
			head := []byte{23, 3, 3, 0, byte(len(inner) + 16)}
			if _, err := a.Write(gcm.Seal(head, expandLabel(t, secret, "iv", 12), inner, head)); err != nil {
				return
			}
			secret = expandLabel(t, secret, "traffic upd", 32)
		}
	})
	s.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, _, err := ReadBuf(s)
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) || !strings.Contains(err.Error(), "non-advancing") {
		t.Errorf("after a flood of key updates: %v", err)
	}
	s.Close()
	wg.Wait()
}

func TestTLSAllocations(t *testing.T) {
	c, s, _, _ := tlsPair(t, osPair)
	msg := make([]byte, 300)
	for range 3 {
		c.Write(msg)
		b, _, _ := ReadBuf(s)
		PutBuf(b)
	}
	f := func() {
		WriteBuffers(c, msg[:100], msg[100:])
		b, _, _ := ReadBuf(s)
		PutBuf(b)
	}
	// crypto/tls: an atLeastReader per read of a record's head and of its body.
	if n := testing.AllocsPerRun(200, f); n > 2 && !raceDetector {
		t.Errorf("%v allocations a message, want 2 at the most", n)
	}
}

func BenchmarkTLSBulk(b *testing.B) {
	for _, size := range []int{16 << 10, 48 << 10, 128 << 10} {
		b.Run(strings.TrimSuffix(time.Duration(size).String(), "ns"), func(b *testing.B) {
			c, s, _, _ := tlsPair(b, osPair)
			p := make([]byte, size)
			var wg sync.WaitGroup
			wg.Go(func() {
				buf := make([]byte, size)
				for {
					if _, err := s.Read(buf); err != nil {
						return
					}
				}
			})
			b.SetBytes(int64(size))
			for b.Loop() {
				c.Write(p)
			}
			c.Close()
			wg.Wait()
		})
	}
}

var _ net.Error = errDry{}
