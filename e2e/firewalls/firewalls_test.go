//go:build firewalls

package firewalls

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// firewalld rejects what is in no zone. weft asks it to trust the bridge, whichever of the
// two starts first, and again after each reload.
func TestFirewalld(t *testing.T) {
	t.Parallel()
	for _, first := range []string{"firewalld", "weft"} {
		t.Run(first+" first", func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.bus()
			if first == "weft" {
				h.launch()
			}
			h.start("firewalld", "--nofork", "--nopid")
			h.eventually("firewalld runs", func() error { _, err := h.try("firewall-cmd", "--state"); return err })
			if first != "weft" {
				h.launch()
			}
			trusted := func() error {
				// It fails while the bridge is in no zone.
				if zone, err := h.try("firewall-cmd", "--get-zone-of-interface=weft"); err != nil || zone != "trusted" {
					return fmt.Errorf("the bridge is in zone %q: %v", zone, err)
				}
				return h.reaches()
			}
			h.eventually("containers reach each other", trusted)
			h.must("firewall-cmd", "--reload")
			h.eventually("after a reload", trusted)
			h.saysNothing()

			// A zone that the user chose stays, and what it rejects is said.
			h.must("firewall-cmd", "--permanent", "--zone=block", "--change-interface=weft")
			h.must("firewall-cmd", "--permanent", "--zone=block", "--remove-forward")
			h.must("firewall-cmd", "--reload")
			h.says("table inet firewalld ends with reject", "firewall-cmd --permanent --zone=trusted --add-interface=weft")
			if zone := h.must("firewall-cmd", "--get-zone-of-interface=weft"); zone != "block" {
				t.Errorf("the user's zone was changed to %s", zone)
			}
			if err := h.reaches(); err == nil {
				t.Error("containers reach each other in zone block")
			}
			h.sh("firewall-cmd --permanent --zone=block --remove-interface=weft; firewall-cmd --permanent --zone=trusted --add-interface=weft && firewall-cmd --reload")
			h.saysNothing()
			if err := h.reaches(); err != nil {
				t.Errorf("after the command: %v", err)
			}

			h.must("firewall-cmd", "--permanent", "--zone=trusted", "--remove-interface=weft")
			h.must("firewall-cmd", "--reload")
			h.eventually("weft's own entry is there again", trusted)
			h.must("weft", "reset", "--force")
			if list := h.must("firewall-cmd", "--zone=trusted", "--list-interfaces"); list != "" {
				t.Errorf("after weft reset these interfaces are trusted: %s", list)
			}
		})
	}
}

// ufw drops what is forwarded. The command that weft names opens it.
func TestUfw(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.launch()
	if err := h.reaches(); err != nil {
		t.Fatal(err)
	}
	h.must("ufw", "--force", "enable")
	const command = "iptables -I FORWARD -i weft -o weft -j ACCEPT"
	h.says("chain FORWARD of table ip filter ends with policy drop", command)
	// ufw lets pings through.
	if got := h.dial(); got != dropped {
		t.Errorf("a connection is %s by ufw", got)
	}
	h.sh(command + "; ip6" + command[2:])
	h.saysNothing()
	if got := h.dial(); got != refused {
		t.Errorf("after the command a connection is %s", got)
	}
}

// nftables.service flushes all rules at each reload, and loads its own.
func TestNftablesService(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.launch()
	h.must("weft", "expose")
	h.sh(`printf 'flush ruleset\ntable inet filter { chain forward { type filter hook forward priority filter; policy drop; }; }\n' >/etc/nftables.conf`)
	for range 2 {
		h.must("nft", "-f", "/etc/nftables.conf")
		h.says("chain forward of table inet filter ends with policy drop", "nft insert rule inet filter forward iifname weft oifname weft accept")
		h.eventually("weft's rules are there again", func() error {
			if rules := h.must("nft", "list", "ruleset"); !strings.Contains(rules, "masquerade") {
				return errors.New(rules)
			}
			return nil
		})
		h.must("nft", "insert", "rule", "inet", "filter", "forward", "iifname", "weft", "oifname", "weft", "accept")
		h.eventually("containers reach each other", h.reaches)
	}
}

// NetworkManager leaves weft's interfaces alone with the file of the packages.
func TestNetworkManager(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.bus()
	install(t, h, "networkmanager.conf", "/etc/NetworkManager/conf.d/30-weft.conf")
	h.start("NetworkManager", "--no-daemon")
	h.eventually("NetworkManager runs", func() error { _, err := h.try("nmcli", "-t", "general"); return err })
	h.launch()
	h.must("weft", "expose")
	h.eventually("it knows the interfaces", func() error {
		states := make(map[string]string)
		for line := range strings.Lines(h.must("nmcli", "-t", "-f", "DEVICE,STATE", "device")) {
			device, state, _ := strings.Cut(strings.TrimSpace(line), ":")
			states[device] = state
		}
		for device, state := range states {
			if (device == "weft" || strings.HasPrefix(device, "vethwe")) && state != "unmanaged" {
				return fmt.Errorf("%s is %s", device, state)
			}
		}
		if states["weft"] == "" {
			return fmt.Errorf("it knows %v", states)
		}
		return nil
	})
	h.quiet()
}

// systemd-networkd with a file that matches everything leaves them alone, too.
func TestNetworkd(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.bus()
	h.sh(`mkdir -p /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp /etc/systemd/network
chown -R systemd-network: /run/systemd/netif
printf '[Match]\nName=*\n[Network]\nDHCP=yes\nLinkLocalAddressing=yes\n' >/etc/systemd/network/50-all.network`)
	install(t, h, "networkd.network", "/etc/systemd/network/05-weft.network")
	// Without udev, which runs only for the whole machine, it waits for it unless /sys is
	// read-only, as in containers.
	h.start("unshare", "--mount", "sh", "-c", "mount -o remount,bind,ro /sys && exec /lib/systemd/systemd-networkd")
	h.eventually("networkd runs", func() error { _, err := h.try("networkctl", "list"); return err })
	h.launch()
	h.must("weft", "expose")
	h.eventually("it leaves the interfaces alone", func() error {
		found := 0
		out := h.must("networkctl", "list", "--no-legend", "--no-pager")
		for line := range strings.Lines(out) {
			words := strings.Fields(line)
			if len(words) < 5 || words[1] != "weft" && !strings.HasPrefix(words[1], "vethwe") {
				continue
			}
			if found++; words[4] != "unmanaged" {
				return errors.New(line)
			}
		}
		if found < 3 {
			return errors.New(out)
		}
		return nil
	})
	h.quiet()
}
