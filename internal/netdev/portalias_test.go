package netdev

import (
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func prefixes(texts ...string) (ps []netip.Prefix) {
	for _, s := range texts {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

var someMAC = net.HardwareAddr{0x02, 0x42, 10, 32, 0, 5}

func TestPortAlias(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	for _, c := range []struct {
		a    portAlias
		want string
	}{
		{portAlias{mtu: 1376}, "weft port mtu 1376"},
		{portAlias{1376, true, someMAC, PortUser{"cni:pods:c1:eth0", "default/web", prefixes("10.32.0.5/12", "fd00::5/64"), true}},
			"weft port mtu 1376 hairpin unguarded mac 02:42:0a:20:00:05 of cni:pods:c1:eth0 has 10.32.0.5/12,fd00::5/64 named default/web"},
		{portAlias{1376, false, nil, PortUser{"a b%\x00ü", "", nil, false}}, "weft port mtu 1376 of a%20b%25%00%C3%BC"},
		// An owner that is too long to be kept whole would be somebody else.
		{portAlias{1376, false, nil, PortUser{strings.Repeat("o", 200), "web", prefixes("10.32.0.5/12"), false}}, "weft port mtu 1376 has 10.32.0.5/12 named web"},
		{portAlias{1376, false, nil, PortUser{id, strings.Repeat("n", 200), nil, false}}, "weft port mtu 1376 of " + id},
	} {
		got := c.a.String()
		if got != c.want {
			t.Errorf("%+v: %q, want %q", c.a, got, c.want)
		}
		if _, ok := parsePortAlias(got); !ok {
			t.Errorf("%q is not understood", got)
		}
	}
	many := portAlias{mtu: 1376, hairpin: true, mac: someMAC, user: PortUser{Owner: id, Name: "web"}}
	for i := range 40 {
		many.user.Addrs = append(many.user.Addrs, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 32, 0, byte(i)}), 12))
	}
	many.user.Addrs = append(many.user.Addrs, prefixes("fd00:1111:2222:3333:4444:5555:6666:7777/128", "fd00::1/64")...)
	text, rest := many.text()
	names := altNames("vethwe1a2b3c4d", rest)
	for _, name := range names {
		if len(name) > maxAltName || strings.ContainsAny(name, "/ ") {
			t.Errorf("the kernel refuses %q", name)
		}
	}
	back, ok := readPortAlias(text, append(names, "vethwe1a2b3c4d+x+/+1.2.3.4", "other+10.0.0.1-8", "vethweplain"))
	if !ok || len(text) > maxAlias || back.user.Owner != id || !slices.Equal(back.user.Addrs, many.user.Addrs) {
		t.Errorf("%q (%d bytes), %q: %+v, %v", text, len(text), names, back, ok)
	}
}

func TestPortAliasChanges(t *testing.T) {
	a := portAlias{mtu: 1376, user: PortUser{Owner: "o", Name: "n", Addrs: prefixes("10.32.0.5/12")}}
	a = a.with(PortUser{Addrs: prefixes("10.32.0.5/12", "10.32.0.6/12")})
	if want := "weft port mtu 1376 of o has 10.32.0.5/12,10.32.0.6/12 named n"; a.String() != want {
		t.Errorf("%q, want %q", a, want)
	}
	a = a.with(PortUser{AllowSpoof: true})
	if want := "weft port mtu 1376 unguarded of o has 10.32.0.5/12,10.32.0.6/12 named n"; a.String() != want {
		t.Errorf("%q, want %q", a, want)
	}
	a = a.with(PortUser{Owner: "p"}).without(prefixes("10.32.0.5/12"))
	if want := "weft port mtu 1376 of p has 10.32.0.6/12"; a.String() != want {
		t.Errorf("%q, want %q", a, want)
	}
}

// FuzzPortUser reads aliases of interfaces, which anybody may write.
func FuzzPortUser(f *testing.F) {
	f.Add("weft port mtu 1376 hairpin mac 02:42:0a:20:00:05 of cni:pods:c1:eth0 has 10.32.0.5/12,fd00::5/64 named default/web", "a b", "%41", "10.32.0.5/12")
	f.Add("weft port mtu 1376 of % has ,", "%", "%%", "::1/128")
	f.Add("weft port mtu 1376 unguarded", "vethwe+10.0.0.1-8+fd00::1-64", "vethwe+-+", "fd00::1/64")
	f.Add("weft port mtu 1376 mac 02:42:0A:20:00:05 mac 00:00:00:00:fe:80:00:00", "a", "b", "::1/128")
	f.Fuzz(func(t *testing.T, alias, owner, name, addr string) {
		if a, ok := parsePortAlias(alias); ok && a.String() != alias {
			t.Errorf("%q becomes %q", alias, a.String())
		}
		for _, p := range addrsOfAltNames([]string{alias, owner, name}) {
			if !p.IsValid() {
				t.Errorf("%q, %q, %q: an address is %s", alias, owner, name, p)
			}
		}
		a := portAlias{mtu: 1500, mac: someMAC, user: PortUser{Owner: owner, Name: name}}
		if p, err := netip.ParsePrefix(addr); err == nil {
			a.user.Addrs = []netip.Prefix{p}
		}
		text := a.String()
		back, ok := parsePortAlias(text)
		if !ok || len(text) > maxAlias {
			t.Fatalf("%+v: %q of %d bytes is not understood", a, text, len(text))
		}
		if back.user.Owner != "" && back.user.Owner != owner || back.user.Name != "" && back.user.Name != name || !slices.Equal(back.user.Addrs, a.user.Addrs) {
			t.Errorf("%+v becomes %+v", a, back)
		}
		if again, _ := parsePortAlias(back.String()); !reflect.DeepEqual(back, again) {
			t.Errorf("%+v becomes %+v", back, again)
		}
	})
}
