package ethernet

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const (
	macs = "020000000002 020000000001 "
	ip4  = "4500001c 00004000 40110000 0a200001 0a200002 0001000200080000"
	ip6  = "60000000 0008 11 40 fd000000000000000000000000000001 fd000000000000000000000000000002 0001000200080000"
	// hop-by-hop options, then a fragment header, then UDP
	ip6ext = "60000000 0018 00 40 fd000000000000000000000000000001 fd000000000000000000000000000002 2c00010400000000 1100000100000001 0001000200080000"
)

func TestParseIP(t *testing.T) {
	for _, c := range []struct {
		name, frame string
		want        string // "version offset protocol at first df", "" for none
	}{
		{"IPv4", macs + "0800" + ip4, "4 14 17 20 true true"},
		{"IPv4 in a VLAN", macs + "8100 0064 0800" + ip4, "4 18 17 20 true true"},
		{"IPv4 in nested VLANs", macs + "88a8 0064 8100 0001 0800" + ip4, "4 22 17 20 true true"},
		{"later fragment", macs + "0800" + strings.Replace(ip4, "00004000", "00000001", 1), "4 14 17 20 false false"},
		{"IPv6", macs + "86dd" + ip6, "6 14 17 40 true true"},
		{"IPv6 with extensions", macs + "86dd" + ip6ext, "6 14 17 56 true true"},
		{"IPv6 later fragment", macs + "86dd" + strings.Replace(ip6ext, "1100000100000001", "1100000900000001", 1), "6 14 17 56 false true"},
		{"ARP", macs + "0806" + ip4, ""},
		{"wrong version", macs + "86dd" + ip4, ""},
		{"cut", macs + "0800" + ip4[:20], ""},
		{"longer than the frame", macs + "0800" + strings.Replace(ip4, "001c", "001d", 1), ""},
		{"four tags", macs + "8100 0064 8100 0064 8100 0064 8100 0064 0800" + ip4, ""},
		{"only a tag", macs + "8100 00", ""},
	} {
		ip, off, ok := ParseIP(unhex(t, c.frame))
		got := ""
		if ok {
			got = fmt.Sprint(ip.Version, off, ip.Protocol, ip.ProtocolAt, ip.FirstPart, ip.DontFragment)
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestAddressKinds(t *testing.T) {
	for _, c := range []struct {
		mac                      MAC
		group, unicast, reserved bool
	}{
		{MAC{2, 0, 0, 0, 0, 1}, false, true, false},
		{MAC{}, false, false, false},
		{Broadcast, true, false, false},
		{MAC{1, 0x80, 0xc2, 0, 0, 0}, true, false, true},
		{MAC{1, 0x80, 0xc2, 0, 0, 0x0f}, true, false, true},
		{MAC{1, 0x80, 0xc2, 0, 0, 0x10}, true, false, false},
	} {
		if c.mac.IsGroup() != c.group || c.mac.IsUnicast() != c.unicast || c.mac.IsReserved() != c.reserved {
			t.Errorf("%s: group %v unicast %v reserved %v", c.mac, c.mac.IsGroup(), c.mac.IsUnicast(), c.mac.IsReserved())
		}
	}
	if s := (MAC{2, 0xab, 0, 0, 0, 1}).String(); s != "02:ab:00:00:00:01" {
		t.Errorf("String() = %s", s)
	}
}

func FuzzParseIP(f *testing.F) {
	for _, s := range []string{"0800" + ip4, "8100 0064 0800" + ip4, "86dd" + ip6, "86dd" + ip6ext, "0806"} {
		f.Add(unhex(f, macs+s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, ok := Addresses(b); ok != (len(b) >= HeaderLen) {
			t.Fatal("Addresses and HeaderLen disagree")
		}
		ip, off, ok := ParseIP(b)
		if !ok {
			return
		}
		if off+ip.Len > len(b) || ip.HeaderLen > ip.Len || ip.ProtocolAt > ip.Len || ip.ProtocolAt < ip.HeaderLen {
			t.Fatalf("%d bytes at %d: %+v", len(b), off, ip)
		}
		if ip.Version == 4 && !ip.Src.Is4() || ip.Version == 6 && !ip.Src.Is6() {
			t.Fatalf("addresses of another family: %+v", ip)
		}
	})
}
