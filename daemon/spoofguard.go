package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/count"
	"github.com/weft-net/weft/internal/keeper"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/owned"
	"github.com/weft-net/weft/router/fastpath/kernel"
)

// spoofGuard keeps a guard at the port of each container, which drops frames with addresses that
// weft did not give to the container. The kernel says which containers live, and what they were
// given, whoever connected them:
//
//	alias of the port ---(before the port is set up)--> protect ---+
//	aliases of ports  ---(view of the keeper)---------> objects ---+--> program at the port
//
// Its zero value guards nothing. It is safe for concurrent use.
type spoofGuard struct {
	// Constant.
	kernel *kernel.Guard // nil if off says why
	off    error
	log    *slog.Logger

	mu    sync.Mutex
	ports map[int]netdev.GivenPort // of the last view, by ifindex
	seen  map[int]*spoofing        // containers that sent frames which were dropped
}

// spoofing is what one container did.
type spoofing struct {
	kernel.GuardDrops
	last   time.Time // when frames were last seen to be dropped
	logged time.Time // when a line of the log named the container
	said   uint64    // frames that lines of the log have counted
}

const (
	// lookEvery is how often the counters of dropped frames are read.
	lookEvery = time.Second
	// A container that spoofs is named in the log once in spoofLogEvery, and no more than
	// maxSpoofLines containers are in that time.
	spoofLogEvery = time.Minute
	maxSpoofLines = 20
	// spoofWarns is how long status names a container after the last frame, and maxSpoofWarnings
	// is how many it names.
	spoofWarns       = 10 * time.Minute
	maxSpoofWarnings = 5
)

// openSpoofGuard returns the guard of the ports in the namespace of the calling thread. If the
// kernel cannot run it, it guards nothing, and says so.
func openSpoofGuard(pinDir string, log *slog.Logger) *spoofGuard {
	g := &spoofGuard{log: log, ports: make(map[int]netdev.GivenPort), seen: make(map[int]*spoofing)}
	if g.kernel, g.off = kernel.OpenGuard(pinDir); g.off != nil {
		log.Warn("containers can send with the addresses of others", "err", g.off)
	}
	return g
}

func (g *spoofGuard) close() {
	if g.kernel == nil {
		return
	}
	if err := g.kernel.Close(); err != nil {
		g.log.Warn("the spoof guard could not be closed", "err", err)
	}
}

// protect makes a port drop what its container may not send. It is netdev.Attachment.Guard.
func (g *spoofGuard) protect(p netdev.GivenPort) error {
	switch {
	case g.kernel == nil:
		return nil
	case p.AllowSpoof:
		return g.kernel.Release(p.Index)
	case p.MAC == nil:
		return fmt.Errorf("guard port %s: the MAC address of its container is not known", p.Name)
	}
	return g.kernel.Protect(kernel.GuardPortOf(p))
}

// adopt protects the ports of all containers that live, before express may bypass the bridge.
func (g *spoofGuard) adopt() error {
	v, err := netdev.ReadView()
	if err != nil {
		return err
	}
	for _, p := range netdev.GivenPorts(v) {
		if err := g.protect(p); err != nil {
			g.log.Warn("a container is not guarded yet", "port", p.Name, "err", err) // the keeper tries again
		}
	}
	return nil
}

// protectNamed does that for the port of a container as its alias says. Without such a port it
// does nothing.
func (g *spoofGuard) protectNamed(port string) error {
	if g.kernel == nil {
		return nil
	}
	p, ok, err := netdev.FindGivenPort(port)
	if err != nil || !ok {
		return err
	}
	return g.protect(p)
}

// Guard implements api.Guards.
func (g *spoofGuard) Guard(_ context.Context, r api.GuardRequest) error {
	if g.kernel == nil {
		return nil
	}
	p, ok, err := netdev.FindGivenPort(r.Port)
	if err == nil && !ok {
		err = usage("guard port %q: it is not the port of a container of weft", r.Port)
	}
	if err != nil {
		return err
	}
	return g.protect(p)
}

// objects returns the guards of all ports, as objects to keep.
func (g *spoofGuard) objects(v *netdev.View) (list []keeper.Object) {
	if g.kernel == nil {
		return nil
	}
	ports := make(map[int]netdev.GivenPort)
	for _, p := range netdev.GivenPorts(v) {
		ports[p.Index] = p
		list = append(list, keeper.Object{
			ID:   owned.ID{Kind: owned.SpoofGuard, Name: guardName(p)},
			Look: func(*netdev.View) ([]string, error) { return g.faults(p) },
			Make: func() error { return g.protectNamed(p.Name) },
		})
	}
	g.mu.Lock()
	g.ports = ports
	g.mu.Unlock()
	if err := g.kernel.Sweep(func(ifindex int) bool { _, there := ports[ifindex]; return there }); err != nil {
		g.log.Warn("the spoof guard of a container that is gone could not be removed", "err", err)
	}
	return list
}

// guardName names the guard of a port. It has what the container may send: if that changes, it
// is no change by other software.
func guardName(p netdev.GivenPort) string {
	if p.AllowSpoof {
		return p.Name + " for any address"
	}
	words := []string{p.Name, "for", p.MAC.String()}
	for _, a := range p.Addrs {
		words = append(words, a.Addr().String())
	}
	return strings.Join(words, " ")
}

// faults returns how the guard of a port differs from the desired state, in words.
func (g *spoofGuard) faults(p netdev.GivenPort) (faults []string, err error) {
	switch {
	case !p.AllowSpoof:
		faults, err = g.kernel.Faults(kernel.GuardPortOf(p))
	case g.kernel.Has(p.Index):
		faults = []string{"it is there, and the container may spoof"}
	}
	if len(faults) == 0 || err != nil {
		return nil, err
	}
	// What the container may send has changed since, or the container is gone.
	if now, ok, err := netdev.FindGivenPort(p.Name); err != nil || !ok || guardName(now) != guardName(p) {
		return nil, errors.Join(err, owned.ErrWaits)
	}
	return faults, nil
}

// run writes to the log which containers send with the addresses of others, until ctx ends.
func (g *spoofGuard) run(ctx context.Context) {
	if g.kernel == nil {
		return
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			drops, err := g.kernel.Drops()
			if err != nil {
				g.log.Warn("the counters of the spoof guard could not be read", "err", err)
				continue
			}
			g.saw(drops, now)
		}
	}
}

// saw takes the counters of all ports.
func (g *spoofGuard) saw(drops map[int]kernel.GuardDrops, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	lines := 0
	for ifindex, s := range g.seen {
		if _, there := drops[ifindex]; !there {
			delete(g.seen, ifindex)
		} else if now.Sub(s.logged) < spoofLogEvery {
			lines++
		}
	}
	for ifindex, d := range drops {
		s := g.seen[ifindex]
		if s == nil {
			s = new(spoofing)
			g.seen[ifindex] = s
		}
		if d.Total() != s.Total() {
			s.last = now
		}
		s.GuardDrops = d
		if d.Total() == s.said || now.Sub(s.logged) < spoofLogEvery || lines >= maxSpoofLines {
			continue
		}
		lines++
		p := g.ports[ifindex]
		g.log.Warn("a container sends with addresses that are not its own; the frames are dropped",
			"container", describeContainer(p), "owner", p.Owner, "frames", d.Total()-s.said, "last", describeDrop(d, p))
		s.logged, s.said = now, d.Total()
	}
}

// describeContainer returns words for the container at a port.
func describeContainer(p netdev.GivenPort) string {
	words := api.DescribeOwner(p.Owner)
	switch {
	case p.PortUser.Name != "":
		words = "container " + p.PortUser.Name
	case isDockerLease(p.Owner):
		words = "a container of Docker's"
	}
	return words + " at port " + p.Name
}

// describeDrop says in words why the last frame of the container at a port was dropped.
func describeDrop(d kernel.GuardDrops, p netdev.GivenPort) string {
	addr := d.Addr.String()
	switch d.Reason {
	case kernel.GuardMAC:
		return fmt.Sprintf("source MAC address %s instead of %s", d.MAC, p.MAC)
	case kernel.GuardIPv4, kernel.GuardIPv6:
		return "source address " + addr
	case kernel.GuardARP:
		return "ARP for " + addr
	case kernel.GuardND:
		return "neighbour discovery for " + addr
	case kernel.GuardRouter:
		return "a router advertisement or redirect"
	case kernel.GuardTagged:
		return "a VLAN tag"
	}
	return "headers that hide what the frame is"
}

// report fills in what was dropped.
func (g *spoofGuard) report(r *api.Report, now time.Time) {
	if g.off != nil {
		r.SpoofGuard.Off = g.off.Error()
		r.Warnings = append(r.Warnings, "no spoof guard: containers can send with the addresses of others: "+r.SpoofGuard.Off)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	var recent []string
	for ifindex, s := range g.seen {
		p := g.ports[ifindex]
		r.SpoofGuard.Containers = append(r.SpoofGuard.Containers, api.Spoofing{
			ID: p.Owner, Name: p.PortUser.Name, Port: p.Name, Frames: s.ByReason(), Last: describeDrop(s.GuardDrops, p), Time: s.last,
		})
		if now.Sub(s.last) < spoofWarns {
			recent = append(recent, fmt.Sprintf("%s sends with addresses that are not its own: %s dropped, the last %s ago, for %s; to let them pass, attach it with --allow-spoof",
				describeContainer(p), count.Of(s.Total(), "frame was", "frames were"), age(s.last, now), describeDrop(s.GuardDrops, p)))
		}
	}
	slices.SortFunc(r.SpoofGuard.Containers, func(a, b api.Spoofing) int { return strings.Compare(a.Port, b.Port) })
	slices.Sort(recent)
	if n := len(recent) - maxSpoofWarnings; n > 0 {
		recent = append(recent[:maxSpoofWarnings], count.Of(n, "more container sends", "more containers send")+" with addresses that are not their own")
	}
	r.Warnings = append(r.Warnings, recent...)
}

// mark notes in a list of containers which may spoof, and how many frames were dropped of each.
func (g *spoofGuard) mark(list []api.Attachment) {
	g.mu.Lock()
	defer g.mu.Unlock()
	byPort, byAddr := make(map[string]int), make(map[netip.Addr]int)
	for i, a := range list {
		if a.ID == api.Exposed {
			continue
		}
		byPort[a.Port] = i
		for _, p := range a.Addresses {
			byAddr[p.Addr()] = i
		}
	}
	for ifindex, p := range g.ports {
		i, known := byPort[p.Name]
		if !known && len(p.Addrs) > 0 {
			i, known = byAddr[p.Addrs[0].Addr()]
		}
		if !known {
			continue
		}
		list[i].AllowSpoof = p.AllowSpoof
		if s := g.seen[ifindex]; s != nil {
			list[i].Spoofed = s.Total()
		}
	}
}
