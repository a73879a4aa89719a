package h2

import (
	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// lost is what an exchange is told when its connection ends; the caller holds mu.
func (st *strm) lost(err error) error {
	switch {
	case st.headDone:
		return failure(stream.FailedReset, true, "the connection ended in the middle of the response", err)
	case st.client.used:
		return failure(stream.FailedStale, true, "the connection ended before the response", err)
	}
	return failure(stream.FailedReset, true, "the connection ended before the response", err)
}

// refusedBy says what the server's RST_STREAM means; the caller holds mu.
func (st *strm) refusedBy(code ErrCode) error {
	err := &ResetError{code}
	if code == RefusedStream {
		return failure(stream.FailedRefused, true, "the upstream did not take the request", err)
	}
	return failure(stream.FailedReset, true, "the upstream reset the request", err)
}

// message takes a header block: 1xx, a response's head or its trailers.
func (cc *ClientConn) message(id uint32, endStream bool, block []byte) *connError {
	c := &cc.conn
	c.mu.Lock()
	st := c.streams.get(id)
	if st == nil {
		never := c.unopened(id)
		_, ours := c.closed.find(id)
		c.mu.Unlock()
		if never || id&1 == 0 {
			return broken(ProtocolError, "HEADERS on a stream that nobody opened (RFC 9113, section 5.1)")
		}
		_, _, _, err := c.fields(block, nil)
		if err == nil && !ours {
			c.mu.Lock()
			err = c.charge(costFrame, "HEADERS on streams that are over")
			c.mu.Unlock()
		}
		return err
	}
	st.pins++ // its caller may finish it meanwhile
	headDone := st.headDone
	c.mu.Unlock()

	var reason string
	var trailers stream.Header
	var head stream.ResponseHead
	var err *connError
	interim := false
	if headDone {
		fields, _, over, e := c.fields(block, nil)
		err = e
		switch {
		case e != nil:
		case over:
			reason = "a trailer section beyond the limit"
		case !endStream:
			reason = "a second response head (RFC 9113, section 8.1)"
		default:
			trailers, reason = trailerFields(fields)
		}
	} else {
		head, reason, err = cc.response(st, block)
		interim = head.Status < 200
		if reason == "" && err == nil && interim && endStream {
			reason = "an interim response that ends its stream (RFC 9113, section 8.1)"
		}
	}

	c.mu.Lock()
	if !st.open || err != nil || reason != "" {
		gone := !st.open
		st.unpin()
		c.mu.Unlock()
		if err != nil || gone {
			return err
		}
		return c.streamBroken(id, ProtocolError, reason)
	}
	if interim {
		// Nobody is told of 100: it is each hop's own.
		e := c.charge(costFrame, "interim responses")
		if head.Status != 100 {
			st.client.early = append(st.client.early, cloneHead(head))
			st.rcond.Broadcast()
		}
		st.unpin()
		c.mu.Unlock()
		return e
	}
	if headDone {
		if st.left > 0 {
			st.unpin()
			c.mu.Unlock()
			return c.streamBroken(id, ProtocolError, "DATA that is not as long as its content-length (RFC 9113, section 8.1.1)")
		}
		st.trailers = trailers
	} else {
		switch {
		case st.client.method == "HEAD" && !st.client.connect, bodiless(head.Status):
			st.left = 0
		case st.client.connect && head.Status == 200:
		default:
			st.left = head.ContentLength
			if endStream && st.left > 0 {
				st.unpin()
				c.mu.Unlock()
				return c.streamBroken(id, ProtocolError, "content-length without DATA (RFC 9113, section 8.1.1)")
			}
			if endStream && st.left < 0 {
				head.ContentLength = 0
			}
		}
		st.client.resp.Head = head
		st.headDone = true
	}
	if endStream {
		st.closeRecv()
	} else {
		st.rcond.Broadcast()
	}
	st.unpin()
	c.mu.Unlock()
	return nil
}

func cloneHead(h stream.ResponseHead) *stream.ResponseHead {
	list := h.Header
	h.Header = nil
	for _, f := range list {
		s := f.Name + f.Value
		h.Header = append(h.Header, stream.Field{Name: s[:len(f.Name)], Value: s[len(f.Name):]})
	}
	return &h
}

// response decodes a response's head.
func (cc *ClientConn) response(st *strm, block []byte) (h stream.ResponseHead, reason string, _ *connError) {
	d := &cc.in.dec
	m := &cc.memos[memoOf(block)]
	if m.hit(block, d) {
		h = m.head
		st.lists = append(st.lists[:0], h.Header...)
		h.Header = st.lists
		return h, "", nil
	}
	before := d.changes
	fields, arena, over, err := cc.conn.fields(block, st.arena)
	st.arena = arena
	if err != nil {
		return h, "", err
	}
	if over {
		return h, "a header list beyond the limit", nil
	}
	if h, reason = st.parseResponse(fields); reason == "" && m.note(block, d, before) {
		m.head = h
		m.head.Header = own(h.Header)
	}
	return h, reason, nil
}

// parseResponse makes a head of fields (RFC 9113, section 8.3.2).
func (st *strm) parseResponse(fields []hfield) (h stream.ResponseHead, reason string) {
	h = stream.ResponseHead{ContentLength: -1, Protocol: stream.HTTP2}
	list := st.lists[:0]
	for i := range fields {
		f := &fields[i]
		switch f.kind {
		case kindStatus:
			if i != 0 || len(f.value) != 3 {
				return h, "a response with :status not at its beginning, or none (RFC 9113, section 8.3.2)"
			}
			n, ok := parseLength(f.value)
			if !ok || n < 100 || n == 101 {
				return h, "a :status that is none (RFC 9113, sections 8.3.2 and 8.6)"
			}
			h.Status = int(n)
			continue
		case kindMethod, kindScheme, kindAuthority, kindPath, kindProtocol:
			return h, "a request's pseudo-header in a response (RFC 9113, section 8.3)"
		case kindBad:
			return h, badField(*f)
		case kindDropped, kindTE:
			continue
		case kindContentLength:
			n, ok := parseLength(f.value)
			if !ok || h.ContentLength >= 0 && h.ContentLength != n {
				return h, "a content-length that is none, or two of them (RFC 9110, section 8.6)"
			}
			if h.ContentLength >= 0 {
				continue
			}
			h.ContentLength = n
		}
		list = append(list, stream.Field{Name: f.name, Value: f.value})
	}
	st.lists, h.Header = list, list
	if h.Status == 0 {
		return h, "a response without :status (RFC 9113, section 8.3.2)"
	}
	return h, ""
}
