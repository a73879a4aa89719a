package h2

// staticTable is RFC 7541, appendix A; its first index is 1.
var staticTable = [...]entry{
	1:  {name: ":authority"},
	2:  {name: ":method", value: "GET"},
	3:  {name: ":method", value: "POST"},
	4:  {name: ":path", value: "/"},
	5:  {name: ":path", value: "/index.html"},
	6:  {name: ":scheme", value: "http"},
	7:  {name: ":scheme", value: "https"},
	8:  {name: ":status", value: "200"},
	9:  {name: ":status", value: "204"},
	10: {name: ":status", value: "206"},
	11: {name: ":status", value: "304"},
	12: {name: ":status", value: "400"},
	13: {name: ":status", value: "404"},
	14: {name: ":status", value: "500"},
	15: {name: "accept-charset"},
	16: {name: "accept-encoding", value: "gzip, deflate"},
	17: {name: "accept-language"},
	18: {name: "accept-ranges"},
	19: {name: "accept"},
	20: {name: "access-control-allow-origin"},
	21: {name: "age"},
	22: {name: "allow"},
	23: {name: "authorization"},
	24: {name: "cache-control"},
	25: {name: "content-disposition"},
	26: {name: "content-encoding"},
	27: {name: "content-language"},
	28: {name: "content-length"},
	29: {name: "content-location"},
	30: {name: "content-range"},
	31: {name: "content-type"},
	32: {name: "cookie"},
	33: {name: "date"},
	34: {name: "etag"},
	35: {name: "expect"},
	36: {name: "expires"},
	37: {name: "from"},
	38: {name: "host"},
	39: {name: "if-match"},
	40: {name: "if-modified-since"},
	41: {name: "if-none-match"},
	42: {name: "if-range"},
	43: {name: "if-unmodified-since"},
	44: {name: "last-modified"},
	45: {name: "link"},
	46: {name: "location"},
	47: {name: "max-forwards"},
	48: {name: "proxy-authenticate"},
	49: {name: "proxy-authorization"},
	50: {name: "range"},
	51: {name: "referer"},
	52: {name: "refresh"},
	53: {name: "retry-after"},
	54: {name: "server"},
	55: {name: "set-cookie"},
	56: {name: "strict-transport-security"},
	57: {name: "transfer-encoding"},
	58: {name: "user-agent"},
	59: {name: "vary"},
	60: {name: "via"},
	61: {name: "www-authenticate"},
}

const staticLen = len(staticTable) - 1

// staticFields are the static table's entries as the decoder gives them.
var staticFields = func() (t [len(staticTable)]hfield) {
	for i := 1; i < len(t); i++ {
		e := &staticTable[i]
		t[i] = hfield{e.name, e.value, classify(e.name, e.value)}
	}
	return t
}()

// staticNames finds a name's first entry, for literals: by a hash of its length
// and ends, with linear probing; 0 is none.
var staticNames = func() (t [256]uint8) {
	for i := 1; i < len(staticTable); i++ {
		name := staticTable[i].name
		at := staticHash(name)
		for ; t[at] != 0 && staticTable[t[at]].name != name; at++ {
		}
		if t[at] == 0 {
			t[at] = uint8(i)
		}
	}
	return t
}()

func staticHash(name string) uint8 {
	n := len(name)
	return uint8(n)*29 ^ name[0]*7 ^ name[n-1]*61 ^ name[n/2]*13
}

// staticName is a name's first index in the static table; 0: it is not there.
func staticName(name string) uint64 {
	if len(name) == 0 {
		return 0
	}
	for at := staticHash(name); ; at++ {
		i := staticNames[at]
		if i == 0 || staticTable[i].name == name {
			return uint64(i)
		}
	}
}
