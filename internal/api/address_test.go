package api

import (
	"net/netip"
	"strings"
	"testing"
)

func TestParseAddress(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"net:default", "net:default"},
		{"net:10.32.1.0/24", "net:10.32.1.0/24"},
		{"ip:10.32.1.5/24", "ip:10.32.1.5/24"},
		{"10.32.1.5/24", "ip:10.32.1.5/24"},
		{"10.32.1.0/31", "ip:10.32.1.0/31"},
		{"10.32.1.1/32", "ip:10.32.1.1/32"},
		{"fd00::5/64", "ip:fd00::5/64"},
		{"ip:FD00:0::5/64", "ip:fd00::5/64"},
		{"net:fd00::/64", "net:fd00::/64"},
		{"fd00::ffff:ffff:ffff:ffff/64", "ip:fd00::ffff:ffff:ffff:ffff/64"}, // IPv6 has no broadcast
	} {
		got, err := ParseAddress(c.in)
		if err != nil {
			t.Errorf("%q: %v", c.in, err)
		} else if got.String() != c.want {
			t.Errorf("%q: %s, want %s", c.in, got, c.want)
		}
	}
}

func TestParseAddressSaysWhatIsWrong(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", "want [ip:]ADDRESS/LENGTH"},
		{"net:", "want [ip:]ADDRESS/LENGTH"},
		{"net:Default", "want [ip:]ADDRESS/LENGTH"},
		{"10.32.1.5", "the length of its subnet is missing"},
		{"fd00::5", "the length of its subnet is missing"},
		{"10.32.1.5/33", "want [ip:]ADDRESS/LENGTH"},
		{"10.32.1.5/024", "want [ip:]ADDRESS/LENGTH"},
		{"fe80::1%eth0/64", "want [ip:]ADDRESS/LENGTH"},
		{"10.32.1.0/24", "any address of it is net:10.32.1.0/24"},
		{"10.32.1.255/24", "broadcast"},
		{"net:10.32.1.5/24", "the subnet is net:10.32.1.0/24, exactly this address is ip:10.32.1.5/24"},
		{"net:10.32.1.0/31", "no address to give"},
		{"::ffff:10.0.0.1/120", "write the IPv4 address by itself"},
		{"224.0.0.1/24", "no interface can have it"},
		{"127.0.0.1/8", "no interface can have it"},
		{strings.Repeat("1", 65), "address of 65 characters"},
	} {
		got, err := ParseAddress(c.in)
		if err == nil {
			t.Errorf("%q: accepted as %s", c.in, got)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %q, want %q in it", c.in, err, c.want)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: more than one line: %q", c.in, err)
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{
		"net:default", "net:10.32.0.0/12", "ip:10.32.1.5/24", "10.32.1.5/24", "fd00::5/64",
		"net:fd00::/48", "::ffff:1.2.3.4/120", "0.0.0.0/0", "255.255.255.255/0", "net:::/0",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAddress(s)
		if err != nil {
			return
		}
		again, err := ParseAddress(a.String())
		if err != nil || again != a {
			t.Fatalf("%q: read as %s, which reads as %s, %v", s, a, again, err)
		}
		if (a.Kind == FromDefault) != (a.Prefix == netip.Prefix{}) {
			t.Fatalf("%q: kind %d with prefix %s", s, a.Kind, a.Prefix)
		}
		if a.Kind == FromSubnet && a.Prefix != a.Prefix.Masked() {
			t.Fatalf("%q: subnet %s has host bits", s, a.Prefix)
		}
		if a.Prefix.IsValid() && a.Prefix.Addr().Is4In6() {
			t.Fatalf("%q: an IPv4 address inside an IPv6 one: %s", s, a.Prefix)
		}
	})
}
