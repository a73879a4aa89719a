package h1

import "github.com/parrel-mesh/parrel/sidecar/stream"

// fault is why a message is not taken. All of them are constants.
type fault struct {
	status int // that a client is answered with; 0: it would not understand
	kind   stream.RefusalKind
	reason string
}

func (f *fault) Error() string { return f.reason }

func malformed(reason string) *fault { return &fault{400, stream.Malformed, reason} }

// Read-only.
var (
	faultBareCR         = malformed("a CR without LF")
	faultBareLF         = malformed("an LF without CR")
	faultControl        = malformed("a control character in a field value")
	faultMethod         = malformed("the method is not a token followed by one space")
	faultTarget         = malformed("the request target is empty or has a control character")
	faultVersion        = malformed("the request line does not end in a version of HTTP")
	faultNotHTTP        = &fault{0, stream.Malformed, "the first line is not HTTP's: neither its target nor its version"}
	faultUnknownVersion = &fault{505, stream.Malformed, "a version of HTTP other than 1.0 and 1.1"}
	faultStatus         = malformed("the first line is not a status line")
	faultFold           = malformed("a line begins with white space: an obsolete line folding, or a field name")
	faultNoName         = malformed("a field without a name")
	faultNoColon        = malformed("a field without a colon")
	faultNameSpace      = malformed("white space in or after a field name")
	faultName           = malformed("a field name is not a token")
	faultPreface        = malformed("PRI is HTTP/2's")

	faultHostMissing   = malformed("no Host field")
	faultHostTwice     = malformed("more than one Host field")
	faultHostDisagrees = malformed("the request target and the Host field name different hosts")
	faultForm          = malformed("the request target is in none of the forms that the method allows")
	faultUserInfo      = malformed("the request target has user information")
	faultConnectBody   = malformed("CONNECT with content")

	faultLength       = malformed("Content-Length is not a number, or beyond any size")
	faultLengthTwice  = malformed("more than one Content-Length field")
	faultBothLengths  = malformed("Content-Length together with Transfer-Encoding")
	faultCodingTwice  = malformed("Transfer-Encoding does not name chunked exactly once")
	faultCodingOld    = malformed("Transfer-Encoding in HTTP/1.0")
	faultCoding       = &fault{501, stream.Malformed, "a transfer coding other than chunked"}
	faultExpect       = &fault{417, stream.Malformed, "an expectation other than 100-continue"}
	faultHeadLarge    = &fault{431, stream.TooLarge, "the head is larger than the limit"}
	faultTargetLarge  = &fault{414, stream.TooLarge, "the request line is larger than the limit"}
	faultFields       = &fault{431, stream.TooLarge, "more fields than the limit"}
	faultSlow         = &fault{408, stream.TooSlow, "the head did not come in its time"}
	faultChunkSize    = malformed("a chunk size is not a hexadecimal number, or beyond any size")
	faultChunkEnd     = malformed("a chunk does not end in CRLF")
	faultChunkLine    = malformed("a chunk's extension has a control character, or ends without CRLF")
	faultChunkExt     = &fault{400, stream.TooLarge, "more chunk extensions than the limit"}
	faultTrailerLarge = &fault{431, stream.TooLarge, "the trailer section is larger than the limit"}
)
