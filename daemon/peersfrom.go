package daemon

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/netdev"
)

// A container that knows the password, or finds a mesh without one, must not become a peer:
// it would be told where all containers are, and get a share of the addresses. So a router
// has no sessions with addresses of containers: those of its own ranges, and those of
// networks of containers on its host. --allow-peers-from lifts that.

// networksEvery is how old the list of networks of this host may be.
const networksEvery = time.Second

// peersFrom decides whether a peer may be at an address. It is safe for concurrent use.
type peersFrom struct {
	// Constant.
	allowed []netip.Prefix
	ranges  []netip.Prefix
	list    func() ([]netip.Prefix, error)
	log     *slog.Logger

	mu       sync.Mutex
	networks []netip.Prefix
	read     time.Time
}

func newPeersFrom(c *Config, log *slog.Logger) *peersFrom {
	p := &peersFrom{
		allowed: c.AllowPeersFrom, log: log,
		list: func() ([]netip.Prefix, error) { return netdev.ContainerNetworks(c.Bridge) },
	}
	for _, r := range c.ranges() {
		// If a user chose a range in which the hosts are, too, the address does not show
		// who is a container.
		routes, err := netdev.Overlapping(r, c.Bridge)
		routes = slices.DeleteFunc(routes, func(route netdev.Route) bool { return !route.Hides(r) && !route.OnLink })
		if err != nil || len(routes) > 0 {
			log.Warn("containers with addresses of the range are not kept from becoming peers", "range", r, "routes", fmt.Sprint(routes), "err", err)
			continue
		}
		p.ranges = append(p.ranges, r)
	}
	return p
}

// refuse returns why there may be no peer at an address, nil if there may be one.
func (p *peersFrom) refuse(a netip.Addr) error {
	within := func(list []netip.Prefix) (found netip.Prefix) {
		i := slices.IndexFunc(list, func(n netip.Prefix) bool { return n.Contains(a) })
		if i < 0 {
			return found
		}
		return list[i]
	}
	if within(p.allowed).IsValid() {
		return nil
	}
	if n := within(p.ranges); n.IsValid() {
		return fmt.Errorf("%s is an address for containers, of the range %s; see --allow-peers-from", a, n)
	}
	if n := within(p.present(time.Now())); n.IsValid() {
		return fmt.Errorf("%s is in the network %s of containers on this host; see --allow-peers-from", a, n)
	}
	return nil
}

// present returns the networks of containers on this host.
func (p *peersFrom) present(now time.Time) []netip.Prefix {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Sub(p.read) < networksEvery {
		return p.networks
	}
	p.read = now
	list, err := p.list()
	if err != nil {
		p.log.Warn("the networks of containers are not known; those known before are used", "err", err)
		return p.networks
	}
	p.networks = list
	return list
}
