package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/firewall"
	"github.com/weft-net/weft/internal/firewalld"
	"github.com/weft-net/weft/internal/keeper"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/owned"
)

// hostFirewall looks after what other software's rules do with the packets of containers. It
// asks firewalld to accept them, and names the rules of others that do not.
type hostFirewall struct {
	bridge  string
	ranges  []netip.Prefix
	exposed func() bool // whether the bridge has an address
}

// firewalldTimeout bounds a question to firewalld.
const firewalldTimeout = 2 * time.Second

// keep declares the objects.
func (f hostFirewall) keep(k *keeper.Keeper) error {
	return k.KeepAll(owned.Firewall, func(*netdev.View) []keeper.Object {
		list := []keeper.Object{{
			ID:   owned.ID{Kind: owned.Firewall, Name: "for bridge " + f.bridge},
			Look: func(*netdev.View) ([]string, error) { return f.bridgedFaults() }, Make: f.acceptBridged,
		}}
		if f.exposed() {
			list = append(list, keeper.Object{
				ID:   owned.ID{Kind: owned.Firewall, Name: "for exposed addresses"},
				Look: func(*netdev.View) ([]string, error) { return f.routedFaults() },
				Make: func() error { return fmt.Errorf("accept packets from and to interface %s there", f.bridge) },
			})
		}
		return list
	})
}

// bridgedFaults returns in words what keeps the containers of this host from others.
func (f hostFirewall) bridgedFaults() ([]string, error) {
	zone, runs, unasked := f.zone()
	if runs && zone == "" && unasked == nil {
		return []string{"firewalld has it in no zone, so it rejects what containers send"}, nil
	}
	ends, err := f.bridgedEnds()
	if err != nil || len(ends) == 0 {
		return nil, errors.Join(err, unasked)
	}
	return []string{inWords(ends) + ", so containers on this host do not reach others"}, nil
}

// bridgedEnds returns where packets from port to port end.
func (f hostFirewall) bridgedEnds() ([]firewall.End, error) {
	shown, err := netdev.ShownBy(f.bridge)
	if err != nil {
		return nil, err
	}
	var packets []firewall.Packet
	for _, r := range f.ranges {
		if cause := shown.IPv4; r.Addr().Is6() && shown.IPv6 != "" || r.Addr().Is4() && cause != "" {
			src := r.Addr().Next()
			packets = append(packets, firewall.Packet{In: f.bridge, Out: f.bridge, Src: src, Dst: src.Next()})
		}
	}
	return endsOf(packets)
}

// routedFaults returns in words what keeps other networks from exposed addresses.
func (f hostFirewall) routedFaults() ([]string, error) {
	var packets []firewall.Packet
	for _, r := range f.ranges {
		inside, outside := r.Addr().Next(), netip.MustParseAddr("192.0.2.1")
		if inside.Is6() {
			outside = netip.MustParseAddr("2001:db8::1")
		}
		packets = append(packets,
			firewall.Packet{In: f.bridge, Src: inside, Dst: outside},
			firewall.Packet{Out: f.bridge, Src: outside, Dst: inside})
	}
	ends, err := endsOf(packets)
	if err != nil || len(ends) == 0 {
		return nil, err
	}
	return []string{inWords(ends) + ", so other networks do not reach containers, or containers them"}, nil
}

// endsOf returns where packets end, each place once.
func endsOf(packets []firewall.Packet) (all []firewall.End, err error) {
	k, err := firewall.NewKernel()
	if err != nil {
		return nil, err
	}
	for _, p := range packets {
		ends, err := firewall.Ends(k, p, netdev.TableName)
		if err != nil {
			return nil, err
		}
		for _, e := range ends {
			if !slices.Contains(all, e) {
				all = append(all, e)
			}
		}
	}
	return all, nil
}

func inWords(ends []firewall.End) string {
	var words []string
	for _, e := range ends {
		words = append(words, e.String())
	}
	return strings.Join(words, " and ")
}

// acceptBridged puts the bridge into a zone of firewalld. It changes no other firewall, and
// names the command for it.
func (f hostFirewall) acceptBridged() error {
	if zone, runs, err := f.zone(); runs && zone == "" && err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), firewalldTimeout)
		defer cancel()
		return firewalld.Add(ctx, firewalld.Trusted, f.bridge)
	}
	ends, err := f.bridgedEnds()
	if err != nil || len(ends) == 0 {
		return err
	}
	var commands []string
	for _, e := range ends {
		commands = append(commands, e.Command(f.bridge))
	}
	return errors.New("accept them: " + strings.Join(commands, "; "))
}

// removeFromFirewalld takes a bridge out of the zone that acceptBridged puts it into.
func removeFromFirewalld(bridge string) error {
	ctx, cancel := context.WithTimeout(context.Background(), firewalldTimeout)
	defer cancel()
	return firewalld.Remove(ctx, firewalld.Trusted, bridge)
}

func (f hostFirewall) zone() (zone string, runs bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), firewalldTimeout)
	defer cancel()
	return firewalld.Zone(ctx, f.bridge)
}
