package dns

import (
	"encoding/binary"
	"errors"
)

// Numbers of DNS that this package reads or writes: RFC 1035, section 4;
// RFC 3596 (AAAA), RFC 6891 (OPT), RFC 8482 (ANY), RFC 8914 (extended errors).
const (
	headerSize  = 12
	maxName     = 255 // on the wire, the root's zero byte included
	maxMessage  = 65535
	maxDatagram = 65507 // over IPv4
	plainSize   = 512   // of a UDP answer to a query without EDNS

	typeA    = 1
	typeSOA  = 6
	typePTR  = 12
	typeAAAA = 28
	typeOPT  = 41
	typeIXFR = 251
	typeAXFR = 252
	typeANY  = 255
	classIN  = 1

	opcodeQuery = 0

	flagQR = 1 << 15
	flagAA = 1 << 10
	flagTC = 1 << 9
	flagRD = 1 << 8
	flagRA = 1 << 7
	flagCD = 1 << 4

	ednsDO = 1 << 15 // in the low half of the OPT record's TTL

	optionEDE = 15 // extended DNS error
)

// rcode is a response code. Those above 15 have their upper bits in EDNS.
type rcode uint16

const (
	noError        rcode = 0
	formatError    rcode = 1
	serverFailure  rcode = 2
	nameError      rcode = 3
	notImplemented rcode = 4
	refused        rcode = 5
	badVersion     rcode = 16
)

var (
	errShort    = errors.New("shorter than a header")
	errAnswer   = errors.New("an answer, where queries are expected")
	errQuestion = errors.New("the question cannot be read")
	errRecords  = errors.New("the records behind the question cannot be read")
)

// query is what is read of a client's message. It refers to the message and
// lives no longer.
type query struct {
	msg   []byte
	end   int // of the question section
	flags uint16
	count int // of questions

	// Of the only question, where it has one and its name is one of letters,
	// digits, - and _: others are never the mesh's own.
	plain        bool
	name         [maxName]byte // lower case, labels joined by dots, none at the end
	nameLen      int
	qtype, class uint16

	edns    bool
	size    int // the largest UDP answer that the client takes
	do      bool
	version byte // of EDNS
}

func (q *query) opcode() int    { return int(q.flags>>11) & 15 }
func (q *query) text() []byte   { return q.name[:q.nameLen] }
func (q *query) ask() []byte    { return q.msg[headerSize:q.end] }
func (q *query) transfer() bool { return q.qtype == typeAXFR || q.qtype == typeIXFR }

// parse reads a client's message. Where the error is errRecords the question was
// read, and what was not is nobody's business but the resolver's.
func (q *query) parse(msg []byte) error {
	q.msg, q.plain, q.nameLen, q.edns, q.size, q.do, q.version = msg, false, 0, false, plainSize, false, 0
	q.qtype, q.class = 0, 0
	if len(msg) < headerSize {
		return errShort
	}
	q.flags = binary.BigEndian.Uint16(msg[2:])
	if q.flags&flagQR != 0 {
		return errAnswer
	}
	q.count = int(binary.BigEndian.Uint16(msg[4:]))
	q.end = headerSize
	for i := range q.count {
		end, ok := skipName(msg, q.end)
		if !ok || end+4 > len(msg) {
			return errQuestion
		}
		if i == 0 && q.count == 1 {
			q.plain = q.fold(msg[q.end:end])
			q.qtype, q.class = binary.BigEndian.Uint16(msg[end:]), binary.BigEndian.Uint16(msg[end+2:])
		}
		q.end = end + 4
	}
	return q.records()
}

// fold takes over the question's name in lower case.
func (q *query) fold(wire []byte) bool {
	n := 0
	for i := 0; i < len(wire) && wire[i] != 0; {
		l := int(wire[i])
		if l > 63 { // compressed: a first name has nothing to refer to
			return false
		}
		if n > 0 {
			q.name[n] = '.'
			n++
		}
		for _, b := range wire[i+1 : i+1+l] {
			switch {
			case 'A' <= b && b <= 'Z':
				b += 'a' - 'A'
			case 'a' <= b && b <= 'z', '0' <= b && b <= '9', b == '-', b == '_':
			default:
				return false
			}
			q.name[n] = b
			n++
		}
		i += 1 + l
	}
	q.nameLen = n
	return n > 0
}

// records looks for EDNS behind the question.
func (q *query) records() error {
	at, left := q.end, 0
	for i := 6; i < headerSize; i += 2 {
		left += int(binary.BigEndian.Uint16(q.msg[i:]))
	}
	for range left {
		end, ok := skipName(q.msg, at)
		if !ok || end+10 > len(q.msg) {
			return errRecords
		}
		next := end + 10 + int(binary.BigEndian.Uint16(q.msg[end+8:]))
		if next > len(q.msg) {
			return errRecords
		}
		if binary.BigEndian.Uint16(q.msg[end:]) == typeOPT {
			if q.edns || q.msg[at] != 0 { // RFC 6891, section 6.1.1: one, of the root
				return errRecords
			}
			q.edns = true
			q.size = min(max(int(binary.BigEndian.Uint16(q.msg[end+2:])), plainSize), maxDatagram)
			q.version = q.msg[end+5]
			q.do = binary.BigEndian.Uint16(q.msg[end+6:])&ednsDO != 0
		}
		at = next
	}
	return nil
}

// skipName gives the end of the name that begins at from.
func skipName(msg []byte, from int) (int, bool) {
	for at := from; at < len(msg) && at-from < maxName; {
		switch l := int(msg[at]); {
		case l == 0:
			return at + 1, true
		case l >= 0xc0: // a pointer ends a name
			return at + 2, at+2 <= len(msg)
		case l > 63:
			return 0, false
		default:
			at += 1 + l
		}
	}
	return 0, false
}

// answers says whether msg is a resolver's answer to q: its id, and its
// question. Letter case is left to the client, which may have chosen it to be
// checked. A resolver that could not read the query, or knows nothing of what is
// asked, may leave the question out (RFC 1035, section 4.1.1: FORMERR, NOTIMP).
func answers(msg []byte, q *query) bool {
	if len(msg) < headerSize || msg[0] != q.msg[0] || msg[1] != q.msg[1] {
		return false
	}
	flags := binary.BigEndian.Uint16(msg[2:])
	if flags&flagQR == 0 || int(flags>>11)&15 != q.opcode() {
		return false
	}
	count := int(binary.BigEndian.Uint16(msg[4:]))
	if code := rcode(flags & 15); count == 0 && q.count != 0 {
		return len(msg) == headerSize && (code == formatError || code == notImplemented)
	}
	ask := q.ask()
	return count == q.count && len(msg) >= q.end && sameFold(msg[headerSize:q.end], ask)
}

// sameFold compares two question sections. Letters are the same in either case;
// a length, a type or a class that differs by the bit of case is another.
func sameFold(a, b []byte) bool {
	for i := 0; i < len(b); {
		for { // one name
			if a[i] != b[i] {
				return false
			}
			l := int(b[i])
			if l == 0 || l > 63 {
				break
			}
			for j := i + 1; j <= i+l; j++ {
				if lower(a[j]) != lower(b[j]) {
					return false
				}
			}
			i += 1 + l
		}
		n := 5 // the root, type and class
		if b[i] != 0 {
			n = 6 // a pointer, type and class
		}
		if string(a[i:i+n]) != string(b[i:i+n]) {
			return false
		}
		i += n
	}
	return true
}

func lower(b byte) byte {
	if 'A' <= b && b <= 'Z' {
		return b + 'a' - 'A'
	}
	return b
}

func codeOf(msg []byte) rcode { return rcode(msg[3] & 15) }
