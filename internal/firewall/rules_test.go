package firewall_test

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/firewall"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
)

var (
	bridged4 = firewall.Packet{In: "weft", Out: "weft", Src: netip.MustParseAddr("10.32.0.1"), Dst: netip.MustParseAddr("10.32.0.2")}
	bridged6 = firewall.Packet{In: "weft", Out: "weft", Src: netip.MustParseAddr("fd00::1"), Dst: netip.MustParseAddr("fd00::2")}
	leaving  = firewall.Packet{In: "weft", Src: netip.MustParseAddr("10.32.0.1"), Dst: netip.MustParseAddr("192.0.2.1")}
)

// Each ruleset is loaded by the real nft or iptables, and asked about three packets.
func TestEnds(t *testing.T) {
	nstest.RequireRoot(t)
	const chain = "chain inet filter forward { type filter hook forward priority 0; policy "
	for _, c := range []struct{ name, script, bridged4, bridged6, leaving string }{
		{"no rules", ``, "", "", ""},
		{"policy", chain + `drop; }`, "forward policy drop", "forward policy drop", "forward policy drop"},
		{"policy accept", chain + `accept; }`, "", "", ""},
		{"reject at the end", chain + `accept; ct state established,related accept; iifname "lo" accept; reject with icmpx admin-prohibited; }`, "forward reject", "forward reject", "forward reject"},
		{"reject for what is established", chain + `accept; ct state established reject; }`, "", "", ""},
		{"a map that says where to go", chain + `drop; ct state vmap { established : accept, new : jump more }; }
chain inet filter more { iifname "weft" oifname "weft" accept; }`, "", "", ""},
		{"a map of other states", chain + `drop; ct state vmap { established : accept }; }`, "forward policy drop", "forward policy drop", "forward policy drop"},
		{"accepted by the bridge", chain + `drop; iifname "weft" oifname "weft" accept; }`, "", "", "forward policy drop"},
		{"a wildcard", chain + `drop; iifname "we*" accept; }`, "", "", ""},
		{"another wildcard", chain + `drop; iifname "eth*" accept; }`, "forward policy drop", "forward policy drop", "forward policy drop"},
		{"a set of interfaces", chain + `drop; oifname { "weft", "eth0" } accept; }`, "", "", "forward policy drop"},
		{"not the bridge", chain + `accept; oifname != "weft" drop; }`, "", "", "forward drop"},
		{"by family", chain + `accept; meta nfproto ipv6 drop; }`, "", "forward drop", ""},
		{"by address", chain + `drop; ip saddr 10.32.0.0/12 ip daddr 10.32.0.0/12 accept; }`, "", "forward policy drop", "forward policy drop"},
		{"by another address", chain + `drop; ip saddr 10.48.0.0/12 accept; ip6 saddr fd00::/16 accept; }`, "forward policy drop", "", "forward policy drop"},
		{"by port", chain + `drop; tcp dport 80 accept; }`, "forward policy drop", "forward policy drop", "forward policy drop"},
		{"some ports are dropped", chain + `accept; tcp dport 80 drop; limit rate over 10/second drop; }`, "", "", ""},
		{"by index", "add table inet filter\nadd chain inet filter forward { type filter hook forward priority 0; policy drop; }\nadd rule inet filter forward iif lo accept", "", "", ""},
		{"a mark", chain + `drop; meta mark 0x7 accept; }`, "", "", ""},
		{"a mark and a port", chain + `drop; meta mark 0x7 tcp dport 80 accept; }`, "forward policy drop", "forward policy drop", "forward policy drop"},
		{"a mark that drops", chain + `accept; meta mark 0x7 drop; }`, "", "", ""},
		{"two interfaces at once", chain + `drop; iifname . oifname { "weft" . "weft" } accept; }`, "", "", ""},
		{"a chain by mark that accepts", chain + `drop; meta mark 0x7 jump more; }
chain inet filter more { accept; }`, "", "", ""},
		{"a chain by mark that drops", chain + `accept; meta mark 0x7 jump more; }
chain inet filter more { drop; }`, "", "", ""},
		{"a set with ranges", "add table inet filter\nadd set inet filter s { type ipv4_addr; flags interval; }\nadd element inet filter s { 10.32.0.0/12 }\nadd chain inet filter forward { type filter hook forward priority 0; policy drop; }\nadd rule inet filter forward ip saddr @s accept", "", "forward policy drop", ""},
		{"chains", chain + `accept; jump zones; reject; }
chain inet filter zones { iifname "eth0" goto public; iifname "weft" goto trusted; goto public; }
chain inet filter public { drop; }
chain inet filter trusted { oifname "weft" accept; return; drop; }`, "", "", "forward reject"},
		{"a chain that returns from goto", chain + `drop; goto other; accept; }
chain inet filter other { return; }`, "forward policy drop", "forward policy drop", "forward policy drop"},
		{"two tables", `table ip a { chain f { type filter hook forward priority 5; policy accept; iifname "weft" drop; }; }
table ip b { chain g { type filter hook forward priority -5; policy drop; }; }`, "g policy drop, f drop", "", "g policy drop, f drop"},
		{"other hooks", `table inet t { chain in { type filter hook input priority 0; policy drop; }; chain pre { type filter hook prerouting priority 0; policy accept; }; }`, "", "", ""},
		{"the own table", `table inet weft { chain f { type filter hook forward priority 5; policy drop; }; }`, "", "", ""},
		{"docker", `#!/bin/sh
iptables -P FORWARD DROP
iptables -N DOCKER-USER
iptables -A DOCKER-USER -i weft -o weft -j ACCEPT
iptables -A DOCKER-USER -j RETURN
iptables -A FORWARD -j DOCKER-USER
iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT`, "", "", "FORWARD policy drop"},
		{"iptables with reject", `#!/bin/sh
iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A FORWARD -p tcp --dport 22 -j ACCEPT
iptables -A FORWARD -j LOG
iptables -A FORWARD -m comment --comment 'a word' -p tcp --dport 23 -j ACCEPT
iptables -A FORWARD -j REJECT --reject-with icmp-host-prohibited`, "FORWARD reject", "", "FORWARD reject"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns := nstest.New(t, "fw")
			load(t, ns, c.script)
			for _, p := range []struct {
				name   string
				packet firewall.Packet
				want   string
			}{{"bridged IPv4", bridged4, c.bridged4}, {"bridged IPv6", bridged6, c.bridged6}, {"leaving", leaving, c.leaving}} {
				var got []string
				for _, e := range ends(t, ns, p.packet) {
					got = append(got, e.Chain+" "+e.Word)
				}
				if g := strings.Join(got, ", "); g != p.want {
					t.Errorf("%s: ends in %q, want %q", p.name, g, p.want)
				}
			}
		})
	}
}

// The command that an End names accepts the packets.
func TestCommandOpens(t *testing.T) {
	nstest.RequireRoot(t)
	for _, script := range []string{
		`table inet t { chain f { type filter hook forward priority 5; policy accept; jump x; }; chain x { drop; }; }`,
		"#!/bin/sh\niptables -A FORWARD -j DROP\nip6tables -P FORWARD DROP",
	} {
		ns := nstest.New(t, "fw")
		load(t, ns, script)
		for _, p := range []firewall.Packet{bridged4, bridged6} {
			found := ends(t, ns, p)
			if len(found) != 1 {
				t.Fatalf("%s: %v", script, found)
			}
			load(t, ns, "#!/bin/sh\n"+found[0].Command("weft"))
			if found := ends(t, ns, p); len(found) > 0 {
				t.Errorf("%s: still %v", script, found)
			}
			if script[0] == 't' {
				break // one rule for both families
			}
		}
	}
}

func ends(t *testing.T, ns string, p firewall.Packet) (found []firewall.End) {
	t.Helper()
	err := netdev.Do(ns, func() error {
		k, err := firewall.NewKernel()
		if err == nil {
			found, err = firewall.Ends(k, p, netdev.TableName)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// load runs a script of sh or nft in a namespace.
func load(t *testing.T, ns, script string) {
	t.Helper()
	cmd := exec.Command("nsenter", "--net="+ns, "sh", "-e")
	if !strings.HasPrefix(script, "#!/bin/sh") {
		if strings.HasPrefix(script, "chain") {
			script = "add table inet filter\n" + declared(script)
		}
		cmd = exec.Command("nsenter", "--net="+ns, "nft", "-f", "-")
	}
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s\n%s", err, out, script)
	}
}

// declared returns commands that make all chains before their rules, as jumps need them.
func declared(script string) string {
	var chains, rules strings.Builder
	for _, part := range strings.Split(script, "chain inet filter ")[1:] {
		name, body, _ := strings.Cut(part, " {")
		head, rest := "", strings.TrimSuffix(strings.TrimSpace(body), "}")
		if strings.Contains(rest, "hook") {
			i := strings.Index(rest, "policy ")
			end := i + strings.Index(rest[i:], ";") + 1
			head, rest = "{"+rest[:end]+" }", rest[end:]
		}
		chains.WriteString("add chain inet filter " + name + " " + head + "\n")
		for depth, start, i := 0, 0, 0; i < len(rest); i++ {
			switch rest[i] {
			case '{':
				depth++
			case '}':
				depth--
			case ';':
				if depth == 0 {
					rules.WriteString("add rule inet filter " + name + " " + rest[start:i] + "\n")
					start = i + 1
				}
			}
		}
	}
	return chains.String() + rules.String()
}
