package h2

import (
	"encoding/binary"
	"fmt"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// Preface is what an HTTP/2 client sends first (RFC 9113, section 3.4).
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// frameType is a frame's type (RFC 9113, section 6).
type frameType uint8

const (
	frameData         frameType = 0
	frameHeaders      frameType = 1
	framePriority     frameType = 2
	frameRSTStream    frameType = 3
	frameSettings     frameType = 4
	framePushPromise  frameType = 5
	framePing         frameType = 6
	frameGoAway       frameType = 7
	frameWindowUpdate frameType = 8
	frameContinuation frameType = 9
)

const (
	flagEndStream  = 0x1
	flagAck        = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

// Settings (RFC 9113, section 6.5.2; RFC 8441, section 3).
const (
	settingTableSize       = 1
	settingEnablePush      = 2
	settingMaxStreams      = 3
	settingInitialWindow   = 4
	settingMaxFrame        = 5
	settingMaxHeaderList   = 6
	settingConnectProtocol = 8
)

const (
	headLen  = 9       // of a frame
	maxFrame = 1 << 14 // the largest payload that we take and send: the protocol's default
	maxInt31 = 1<<31 - 1
)

// ErrCode is why a stream or a connection ended (RFC 9113, section 7).
type ErrCode uint32

// Error codes.
const (
	NoError            ErrCode = 0x0
	ProtocolError      ErrCode = 0x1
	InternalError      ErrCode = 0x2
	FlowControlError   ErrCode = 0x3
	SettingsTimeout    ErrCode = 0x4
	StreamClosed       ErrCode = 0x5
	FrameSizeError     ErrCode = 0x6
	RefusedStream      ErrCode = 0x7
	Cancel             ErrCode = 0x8
	CompressionError   ErrCode = 0x9
	ConnectError       ErrCode = 0xa
	EnhanceYourCalm    ErrCode = 0xb
	InadequateSecurity ErrCode = 0xc
	HTTP11Required     ErrCode = 0xd
)

var codeNames = [...]string{
	"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
	"FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
	"INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
}

func (c ErrCode) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("code %#x", uint32(c))
}

// ResetError says that the peer reset the stream, and with which code. It is
// found in the Err of a [stream.Failure] by errors.As.
type ResetError struct{ Code ErrCode }

func (e *ResetError) Error() string { return "h2: the peer reset the stream: " + e.Code.String() }

// connError ends a connection with a GOAWAY.
type connError struct {
	code   ErrCode
	reason string
	kind   stream.RefusalKind // that a server counts; 0: none
}

func (e *connError) Error() string { return "h2: " + e.code.String() + ": " + e.reason }

func broken(code ErrCode, reason string) *connError {
	return &connError{code, reason, stream.Malformed}
}

// appendFrame appends a frame's head; its payload is to follow.
func appendFrame(dst []byte, n int, t frameType, flags byte, id uint32) []byte {
	return append(dst, byte(n>>16), byte(n>>8), byte(n), byte(t), flags, byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

func appendSetting(dst []byte, id uint16, v uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(dst, id), v)
}

// putLength writes the payload's length into a frame's head.
func putLength(head []byte, n int) { head[0], head[1], head[2] = byte(n>>16), byte(n>>8), byte(n) }
