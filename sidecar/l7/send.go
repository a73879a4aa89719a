package l7

import (
	"errors"
	"io"
	"strconv"
	"sync"

	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
)

// buffers are those that responses are copied through.
var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// send carries a response to the client: head, body as it comes, trailers.
func (s *exchange) send(resp *stream.Response) {
	h := &resp.Head
	s.rec.Status, s.rec.Response = h.Status, h.Header
	if resp.Tunnel != nil {
		s.tunnel(resp)
		return
	}
	if resp.Body != nil {
		defer func() { _ = resp.Body.Close() }()
	}
	if s.rec.Protocol == "grpc" || stream.GRPC(h.Header.Get(hContentType)) {
		s.grpcStatus(h.Header)
	}
	none := resp.Body == nil || noBody(s.req.Head.Method, h.Status)
	buf := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buf)
	first, err := 0, error(nil)
	if _, status := h.Header.Lookup(hGRPCStatus); status && !none {
		// gRPC's Trailers-Only: the head must carry the end of the stream.
		if first, err = resp.Body.Read(buf[:]); first == 0 && err == io.EOF && len(resp.Body.Trailers()) == 0 {
			none = true
		}
	}
	s.headSent = true
	if werr := s.w.Head(h, none); werr != nil {
		s.clientGone(werr)
		return
	}
	if none {
		return
	}
	s.pump(resp.Body, buf[:], first, err)
}

// pump copies the body; n and err are what was read of it already.
func (s *exchange) pump(body stream.Body, buf []byte, n int, err error) {
	for {
		if n > 0 {
			if werr := s.write(buf[:n]); werr == errTimeout {
				s.cutShort(werr)
				return
			} else if werr != nil {
				s.clientGone(werr)
				return
			}
			s.rec.BytesOut += int64(n)
			s.watch.touch()
		}
		if err != nil {
			break
		}
		n, err = body.Read(buf)
	}
	if err != io.EOF {
		s.cutShort(err)
		return
	}
	trailers := body.Trailers()
	trailers.StripTrailers()
	s.rec.Trailer = trailers
	s.grpcStatus(trailers)
	if werr := s.w.Finish(trailers); werr != nil {
		s.clientGone(werr)
	}
}

var errTimeout = errors.New("l7: a time-out ended the exchange")

// write writes a part of the body. The time-out sets its code before it looks
// at writing, so that one of both sees the other.
func (s *exchange) write(p []byte) error {
	s.writing.Store(true)
	defer s.writing.Store(false)
	if !s.answered && s.watch.fired() != telemetry.OK {
		return errTimeout
	}
	_, err := s.w.Write(p)
	return err
}

// clientGone records that the client could not be written to.
func (s *exchange) clientGone(err error) {
	s.rec.Code, s.rec.Detail = telemetry.DownstreamReset, err.Error()
	if code := s.watch.fired(); code != telemetry.OK {
		s.rec.Code, s.rec.Detail = code, "time-out of "+s.watch.limit(code).String()
	} else if code, reason := s.x.c.Ended(); code != telemetry.OK {
		s.rec.Code, s.rec.Detail = code, reason
	}
	s.w.Abort()
}

// cutShort ends a response whose body failed: a gRPC client gets a status, any
// other sees that the message is not complete.
func (s *exchange) cutShort(err error) {
	a := s.abort(err)
	if a.Code == telemetry.UpstreamReset {
		a.Code = telemetry.UpstreamConnectionTermination // the head had come
	}
	s.rec.Code, s.rec.Detail = a.Code, a.Detail
	if s.rec.Protocol == "grpc" && s.client.Err() == nil && a.Code != telemetry.DownstreamReset {
		t := s.e.grpcTrailers(a.Code)
		s.rec.Trailer = t
		s.grpcStatus(t)
		_ = s.w.Finish(t)
		return
	}
	s.w.Abort()
}

// grpcStatus keeps the status of a gRPC response's head or trailers.
func (s *exchange) grpcStatus(h stream.Header) {
	if v, ok := h.Lookup(hGRPCStatus); ok {
		if n, err := strconv.Atoi(v); err == nil && n >= 0 {
			s.rec.GRPCStatus = n
		}
	}
}

// tunnel carries an accepted upgrade's bytes both ways until both directions
// have ended or one has failed.
func (s *exchange) tunnel(resp *stream.Response) {
	up := resp.Tunnel
	defer func() { _ = up.Close() }()
	s.headSent = true
	s.watch.unbound()
	down, err := s.w.Accept(&resp.Head)
	if err != nil {
		s.clientGone(err)
		return
	}
	defer func() { _ = down.Close() }()
	ended := make(chan struct{})
	var both sync.WaitGroup
	both.Go(func() { // time-outs, drain and withdrawn permissions end both sides
		select {
		case <-s.ctx.Done():
			_ = up.Close()
			_ = down.Close()
		case <-ended:
		}
	})
	var in, out int64
	var inErr, outErr error
	var copies sync.WaitGroup
	copies.Go(func() { in, inErr = s.copy(up, down) })
	copies.Go(func() { out, outErr = s.copy(down, up) })
	copies.Wait()
	close(ended)
	both.Wait()
	s.bytesIn.Add(in)
	s.rec.BytesOut += out
	if code := s.watch.fired(); code != telemetry.OK {
		s.rec.Code, s.rec.Detail = code, "time-out of "+s.watch.limit(code).String()
	} else if code, reason := s.x.c.Ended(); code != telemetry.OK {
		s.rec.Code, s.rec.Detail = code, reason
	} else if err := errors.Join(inErr, outErr); err != nil {
		s.rec.Detail = err.Error()
	}
}

// copy carries one direction; its failure ends the other.
func (s *exchange) copy(dst, src stream.Tunnel) (n int64, err error) {
	buf := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buf)
	for {
		m, rerr := src.Read(buf[:])
		if m > 0 {
			s.watch.touch()
			if _, err := dst.Write(buf[:m]); err != nil {
				_ = src.Close()
				_ = dst.Close()
				return n, err
			}
			n += int64(m)
		}
		if rerr == io.EOF {
			return n, dst.CloseWrite()
		}
		if rerr != nil {
			_ = src.Close()
			_ = dst.Close()
			return n, rerr
		}
	}
}
