package names

import (
	"errors"
	"fmt"
	"net/netip"
)

// The payload of a bucket, for each entry in order of name, container, address and flags:
//
//	flags      u8  bit 0: outside, see Entry.Outside; the others are 0
//	name       u8 length, then the host name, lower case, without a trailing dot
//	container  u8 length, then its id
//	address    u8 length, 4 or 16, then its bytes
//
// mesh/records has the format of the record around it.
const flagOutside = 1

// use is the name of host names among the uses of mesh/records.
const use = "dns names"

// entryCost is the memory that an entry takes besides its encoding: the parsed form and its
// places in the table, measured with short names.
const entryCost = 512

var errShort = errors.New("truncated")

// decode parses the payload of a bucket.
func decode(bucket uint8, b []byte) ([]Entry, error) {
	field := func() (f []byte, ok bool) {
		if len(b) == 0 || len(b) < 1+int(b[0]) {
			return nil, false
		}
		f, b = b[1:1+int(b[0])], b[1+int(b[0]):]
		return f, true
	}
	var entries []Entry
	for i := 0; len(b) > 0; i++ {
		flags := b[0]
		b = b[1:]
		name, ok1 := field()
		container, ok2 := field()
		address, ok3 := field()
		if !ok1 || !ok2 || !ok3 {
			return nil, fmt.Errorf("parse host names: entry %d: %w", i, errShort)
		}
		addr, _ := netip.AddrFromSlice(address)
		e := Entry{Name: string(name), Container: string(container), Addr: addr, Outside: flags == flagOutside}
		if err := e.Check(); err != nil {
			return nil, fmt.Errorf("parse host names: entry %d: %w", i, err)
		}
		switch {
		case flags > flagOutside:
			return nil, fmt.Errorf("parse host names: entry %d: flags %#x, want 0 or 1", i, flags)
		case bucketOf(e.Name) != bucket:
			return nil, fmt.Errorf("parse host names: entry %d: %s belongs to bucket %d, not to %d", i, e.Name, bucketOf(e.Name), bucket)
		case i > 0 && entries[i-1].compare(e) >= 0:
			return nil, fmt.Errorf("parse host names: entry %d: %s is out of order", i, e.Name)
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// encode makes the payload of a bucket from valid entries in order.
func encode(entries []Entry) (b []byte) {
	for _, e := range entries {
		flags := byte(0)
		if e.Outside {
			flags = flagOutside
		}
		b = append(b, flags, byte(len(e.Name)))
		b = append(b, e.Name...)
		b = append(b, byte(len(e.Container)))
		b = append(b, e.Container...)
		b = append(b, byte(e.Addr.BitLen()/8))
		b = append(b, e.Addr.AsSlice()...)
	}
	return b
}
