package l7

import (
	"errors"
	"io"
	"strconv"
	"sync"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
)

func isEOF(err error) bool { return err == io.EOF }

// send carries a response to the client: head, body as it comes, trailers. What
// is there at once, head and body, is left to the codec to send in one write;
// before anything is waited for it is flushed.
func (s *exchange) send(resp *stream.Response) {
	h := &resp.Head
	s.rec.Status, s.rec.Response = h.Status, h.Header
	if resp.Tunnel != nil {
		s.tunnel(resp)
		return
	}
	none := resp.Body == nil || noBody(s.req.Head.Method, h.Status)
	b := body{c: nil, b: resp.Body}
	if !none {
		if c, ok := resp.Body.(stream.Chunks); ok {
			b.c = c
		} else {
			b.buf = netio.GetBuf()
			defer netio.PutBuf(b.buf)
		}
	}
	var first []byte
	var err error
	if s.rec.Protocol == "grpc" || stream.GRPC(h.Header.Get(hContentType)) {
		if s.grpcStatus(h.Header) && !none {
			// gRPC's Trailers-Only: the head must carry the end of the stream.
			if first, err = b.next(); len(first) == 0 && err == io.EOF && len(resp.Body.Trailers()) == 0 {
				none = true
			}
		}
	}
	s.started = true
	s.watch.writing()
	if werr := s.w.Head(h, none); werr != nil {
		s.clientGone(werr)
		return
	}
	if none {
		if werr := s.w.Finish(nil); werr != nil {
			s.clientGone(werr)
		}
		return
	}
	s.pump(&b, first, err, h.ContentLength)
}

// body is a response's body, read by whichever way it has.
type body struct {
	b   stream.Body
	c   stream.Chunks // nil: it does not lend
	buf *netio.Buf    // where c is nil
}

// next gives the next bytes, valid until the next call.
func (b *body) next() ([]byte, error) {
	if b.c != nil {
		return b.c.Next()
	}
	n, err := b.b.Read(b.buf[:])
	return b.buf[:n], err
}

// pump copies the body; p and err are what was read of it already. length is
// what the head announced, -1: unknown.
func (s *exchange) pump(b *body, p []byte, err error, length int64) {
	for {
		if len(p) > 0 {
			if werr := s.write(p); werr == errTimeout {
				s.cutShort(werr)
				return
			} else if werr != nil {
				s.clientGone(werr)
				return
			}
			s.rec.BytesOut += int64(len(p))
		}
		if err != nil {
			break
		}
		if b.c != nil && b.c.Ready() || b.c == nil && s.rec.BytesOut == length {
			p, err = b.next() // at once: what was written may wait for it
			continue
		}
		if werr := s.w.Flush(); werr != nil {
			s.clientGone(werr)
			return
		}
		s.watch.waiting()
		if now := s.watch.touch(); s.rec.FirstByte == 0 {
			s.rec.FirstByte = s.watch.since(now)
		}
		p, err = b.next()
		s.watch.writing()
	}
	if err != io.EOF {
		s.cutShort(err)
		return
	}
	trailers := b.b.Trailers()
	if len(trailers) > 0 {
		trailers.StripTrailers()
		s.rec.Trailer = trailers
		s.grpcStatus(trailers)
	}
	if werr := s.w.Finish(trailers); werr != nil {
		s.clientGone(werr)
	}
}

// write writes a part of the body. The time-out sets its code before it looks
// whether the exchange writes, so that one of both sees the other.
func (s *exchange) write(p []byte) error {
	s.watch.moved()
	if !s.answered && s.watch.fired() != telemetry.OK {
		return errTimeout
	}
	_, err := s.w.Write(p)
	return err
}

// clientGone records that the client could not be written to. What made the
// mesh answer itself stays the reason.
func (s *exchange) clientGone(err error) {
	defer s.w.Abort()
	if s.answered {
		return
	}
	s.rec.Code, s.rec.Detail = telemetry.DownstreamReset, err.Error()
	if code := s.watch.fired(); code != telemetry.OK {
		s.rec.Code, s.rec.Detail = code, "time-out of "+s.watch.limit(code).String()
	} else if code, reason := s.x.c.Ended(); code != telemetry.OK {
		s.rec.Code, s.rec.Detail = code, reason
	}
}

// cutShort ends a response whose body failed: a gRPC client gets a status, any
// other sees that the message is not complete.
func (s *exchange) cutShort(err error) {
	a := s.abort(err)
	if a.Code == telemetry.UpstreamReset {
		a.Code = telemetry.UpstreamConnectionTermination // the head had come
	}
	s.rec.Code, s.rec.Detail = a.Code, a.Detail
	if s.rec.Protocol == "grpc" && a.Code != telemetry.DownstreamReset && (s.watch.fired() != telemetry.OK || s.life.Cause() == nil) {
		t := s.e.grpcTrailers(a.Code)
		s.rec.Trailer = t
		s.grpcStatus(t)
		_ = s.w.Finish(t)
		return
	}
	_ = s.w.Flush() // what did come is the client's
	s.w.Abort()
}

// grpcStatus keeps the status of a gRPC response's head or trailers, and says
// whether there is one.
func (s *exchange) grpcStatus(h stream.Header) bool {
	v, ok := h.Lookup(hGRPCStatus)
	if ok {
		if n, err := strconv.Atoi(v); err == nil && n >= 0 {
			s.rec.GRPCStatus = n
		}
	}
	return ok
}

// tunnel carries an accepted upgrade's bytes both ways until both directions
// have ended or one has failed.
func (s *exchange) tunnel(resp *stream.Response) {
	s.started = true
	// Whoever ends the tunnel, at whatever moment, gives the response back with
	// it, and what resp points to becomes another exchange's: from here on this
	// exchange has a copy, whose end is the end of its own tunnel and of no other.
	resp = &stream.Response{Head: resp.Head, Tunnel: resp.Tunnel}
	resp.Head.Header = resp.Head.Header.Clone()
	s.resp, s.rec.Response = resp, resp.Head.Header
	s.watch.unbound()
	down, err := s.w.Accept(&resp.Head)
	if err != nil {
		s.clientGone(err)
		return
	}
	t := &tunnel{up: resp.Tunnel, down: down}
	defer t.Cancelled(nil)
	// Time-outs, drain and withdrawn permissions end both sides.
	stop, live := stream.OnCancel(s.life, t)
	if !live {
		t.Cancelled(nil)
	}
	defer stop.Stop()
	var in, out int64
	var inErr, outErr error
	var copies sync.WaitGroup
	copies.Go(func() { in, inErr = s.copy(t, t.up, down) })
	copies.Go(func() { out, outErr = s.copy(t, down, t.up) })
	copies.Wait()
	s.rec.BytesIn += in
	s.rec.BytesOut += out
	if code := s.watch.fired(); code != telemetry.OK {
		s.rec.Code, s.rec.Detail = code, "time-out of "+s.watch.limit(code).String()
	} else if code, reason := s.x.c.Ended(); code != telemetry.OK {
		s.rec.Code, s.rec.Detail = code, reason
	} else if err := errors.Join(inErr, outErr); err != nil {
		s.rec.Detail = err.Error()
	}
}

// tunnel is both sides of an upgraded stream.
type tunnel struct{ up, down stream.Tunnel }

// Cancelled closes both: whoever copies comes back.
func (t *tunnel) Cancelled(error) {
	_ = t.up.Close()
	_ = t.down.Close()
}

// copy carries one direction; its failure ends the other.
func (s *exchange) copy(t *tunnel, dst, src stream.Tunnel) (n int64, err error) {
	buf := netio.GetBuf()
	defer netio.PutBuf(buf)
	for {
		m, rerr := src.Read(buf[:])
		if m > 0 {
			s.watch.touch()
			if _, err := dst.Write(buf[:m]); err != nil {
				t.Cancelled(nil)
				return n, err
			}
			n += int64(m)
		}
		if rerr == io.EOF {
			return n, dst.CloseWrite()
		}
		if rerr != nil {
			t.Cancelled(nil)
			return n, rerr
		}
	}
}
