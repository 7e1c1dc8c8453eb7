package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/weft-net/weft/dns/forward"
	"github.com/weft-net/weft/dns/names"
	"github.com/weft-net/weft/dns/resolvconf"
	"github.com/weft-net/weft/dns/server"
	"github.com/weft-net/weft/dns/zone"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/records"
	"github.com/weft-net/weft/mesh/replica"
)

// Defaults of a Config.
const (
	DefaultDomain = "weft.internal"
	DefaultTTL    = 1 // seconds
)

const (
	// updateEvery is the interval at which the host's resolv.conf is read and the server retries
	// addresses where it does not listen yet. Polling also notices a file that is replaced or a
	// symbolic link that changes.
	updateEvery = 2 * time.Second
	// probeEvery is the interval between tests of the host's name servers for forwarding loops.
	// They are also tested after each change.
	probeEvery = 10 * time.Minute
)

// ErrOff is the error of a Service that is off.
var ErrOff = errors.New("this router was launched with --no-dns")

// Config configures a Service.
type Config struct {
	// Off turns service discovery off: the Service has no names and answers no queries, but still
	// relays the names of other peers.
	Off    bool
	Domain string // in canonical form
	TTL    uint32 // seconds
	Listen []Listen
	// ResolvConf is the path of the host's resolv.conf. Timeout is the time that its name servers
	// have to answer a query.
	ResolvConf string
	Timeout    time.Duration
	// Ranges are the address ranges of the mesh. Their reverse names exist in the mesh only.
	Ranges []netip.Prefix
	// External allows this host to name addresses outside Ranges that it did not attach.
	External bool
	// Owns reports whether a peer owns an address of Ranges; if it is nil, each owns all. It is
	// called concurrently and without locks of the Service. The first query for a name waits for
	// it.
	Owns func(n peer.Name, a netip.Addr) bool

	Self     peer.Name
	Signer   peer.Signer
	Verifier peer.Verifier
	// Announce sends a change of the state to the mesh. It is called without locks of the Service.
	Announce func(delta []byte)
	// Now returns the time as most peers see it; nil: the clock of this host.
	Now func() time.Time
	Log *slog.Logger
}

// Service is the service discovery of one host. Make one with New. It is safe for concurrent use.
type Service struct {
	// Constant.
	cfg     Config
	log     *slog.Logger
	forward *forward.Forwarder
	server  *server.Server
	table   *names.Table
	names   *replica.Replica[*names.State]
	wake    chan struct{} // capacity 1; makes the run loop check the network now

	// Atomic.
	started       atomic.Bool
	listening     atomic.Pointer[[]Listening]
	upstreamFault atomic.Pointer[string] // of reading resolv.conf
}

// New returns a Service without names.
func New(cfg Config) *Service {
	state := names.New(names.Config{
		Self: cfg.Self, Signer: cfg.Signer, Verifier: cfg.Verifier, Start: time.Now(), Ranges: cfg.Ranges, Owns: cfg.Owns,
	})
	s := &Service{
		cfg: cfg, log: cfg.Log, wake: make(chan struct{}, 1), forward: forward.New(cfg.Timeout), table: state.Table(),
		names: replica.New(replica.Config{What: "DNS names", Announce: cfg.Announce, Now: cfg.Now, Log: cfg.Log}, state),
	}
	s.server = server.New(zone.New(cfg.Domain, cfg.TTL, s.table, cfg.Ranges, rand.Uint64), s.forward)
	return s
}

// errStarted is the result of every call of Run after the first.
var errStarted = errors.New("serve DNS: the service was started before; a service runs once")

// Run serves until ctx ends, and closes all its sockets before it returns. A Service runs once.
func (s *Service) Run(ctx context.Context) error {
	if s.started.Swap(true) {
		return errStarted
	}
	defer s.server.Close()
	if ctx.Err() != nil {
		return nil // stopped before it started
	}
	tick := time.NewTicker(replica.TickEvery)
	defer tick.Stop()
	var updated, probed time.Time
	var background sync.WaitGroup
	defer background.Wait()
	var refreshing atomic.Bool // an owner of addresses that answers late must not delay the loop
	for now := time.Now(); ; {
		s.names.Tick(now)
		if !refreshing.Swap(true) {
			background.Go(func() {
				defer refreshing.Store(false)
				s.table.Refresh()
			})
		}
		if !s.cfg.Off && now.Sub(updated) >= updateEvery {
			updated = now
			s.updateListeners()
			if s.updateUpstreams() || now.Sub(probed) >= probeEvery {
				probed = now
				background.Go(func() { s.forward.Probe(ctx) })
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case now = <-tick.C:
		case <-s.wake:
			now, updated = time.Now(), time.Time{}
		}
	}
}

// NetworkChanged reports that interfaces or addresses of the host have changed.
func (s *Service) NetworkChanged() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// change removes the entries out of this host and then adds the entries in. On error nothing is
// changed.
func (s *Service) change(out, in []names.Entry) error {
	return s.names.Change(func(state *names.State) ([][]byte, error) { return state.Change(out, in) })
}

// updateUpstreams makes the forwarder use the host's name servers, except for this server itself.
// It reports whether they changed.
func (s *Service) updateUpstreams() bool {
	found, err := resolvconf.Read(s.cfg.ResolvConf, resolvconf.ResolvedPath)
	reason := ""
	if err != nil {
		reason = err.Error()
	}
	if old := s.upstreamFault.Swap(&reason); reason != "" && (old == nil || *old != reason) {
		if len(found) == 0 {
			s.log.Warn("the host's name servers could not be read", "err", err)
		} else {
			s.log.Warn("some of the host's name servers are not used", "err", err)
		}
	}
	if err != nil && len(found) == 0 {
		return false // the previous servers may still answer
	}
	own := s.server.Addrs()
	found = slices.DeleteFunc(found, func(a netip.AddrPort) bool { return listensAt(own, a) })
	changed := s.forward.SetServers(found)
	if changed {
		s.log.Info("forwarding DNS queries to the host's name servers", "servers", found)
	}
	return changed
}

// listensAt reports whether a server that listens at own receives packets to a.
func listensAt(own []netip.AddrPort, a netip.AddrPort) bool {
	return slices.ContainsFunc(own, func(o netip.AddrPort) bool {
		if o == a {
			return true
		}
		if o.Port() != a.Port() || !o.Addr().IsUnspecified() {
			return false
		}
		all, err := netdev.HostAddresses()
		return a.Addr().IsLoopback() || err == nil && slices.Contains(all, a.Addr())
	})
}

// Domain returns the domain of container names, or "" if the Service is off.
func (s *Service) Domain() string {
	if s.cfg.Off {
		return ""
	}
	return s.cfg.Domain
}

// Server returns an address at which containers can query this server, or the zero Addr if there
// is none.
func (s *Service) Server() netip.Addr {
	if listening := s.listening.Load(); listening != nil {
		for _, p := range *listening {
			for _, a := range p.Addrs {
				if a.Port() == Port {
					return a.Addr()
				}
			}
		}
	}
	return netip.Addr{}
}

// Qualify returns the canonical form of a host name in the domain. name may omit the domain if it
// has no dot.
func (s *Service) Qualify(name string) (string, error) {
	if s.cfg.Off {
		return "", ErrOff
	}
	n, err := names.Canonical(name)
	if err != nil {
		return "", err
	}
	if !strings.Contains(n, ".") {
		if n, err = names.Canonical(n + "." + s.cfg.Domain); err != nil {
			return "", err
		}
	}
	if !strings.HasSuffix(n, "."+s.cfg.Domain) {
		return "", fmt.Errorf("host name %s is not in the domain %s", n, s.cfg.Domain)
	}
	return n, nil
}

// Add adds addresses to a host name of a container. Addresses that the name already has stay.
func (s *Service) Add(container, name string, addrs ...netip.Addr) error {
	wrap := func(err error) error { return fmt.Errorf("add host name %s of container %s: %w", name, container, err) }
	fqdn, err := s.Qualify(name)
	if err != nil {
		return wrap(err)
	}
	var in []names.Entry
	for _, a := range addrs {
		in = append(in, s.entry(container, fqdn, a))
	}
	if err := s.change(nil, in); err != nil {
		return wrap(err)
	}
	return nil
}

// entry returns the entry of an address that this host may name; see Check.
func (s *Service) entry(container, fqdn string, a netip.Addr) names.Entry {
	return names.Entry{Name: fqdn, Container: container, Addr: a, Outside: !s.inside(a)}
}

func (s *Service) inside(a netip.Addr) bool {
	return slices.ContainsFunc(s.cfg.Ranges, func(r netip.Prefix) bool { return r.Contains(a) })
}

// ErrExternal is the cause if a host may not give an address a name.
var ErrExternal = errors.New("it is outside the address ranges of the mesh, and this host neither attached nor exposed it; to allow that, launch the router of this host with --dns-external")

// Check returns an error unless this host may give an address a name. Addresses that it attached to
// a container or exposed always may have one, so the caller need not ask for them.
func (s *Service) Check(a netip.Addr) error {
	if !s.inside(a) && !s.cfg.External {
		return fmt.Errorf("address %s: %w", a, ErrExternal)
	}
	return nil
}

// IsForeign reports whether an address is one of the mesh that this host does not own. No host
// answers a name with it.
func (s *Service) IsForeign(a netip.Addr) bool {
	return s.inside(a) && s.cfg.Owns != nil && !s.cfg.Owns(s.cfg.Self, a)
}

// Remove removes addresses from a host name of a container, and returns what it removed. An empty
// name means all names of the container; no addrs means all addresses.
func (s *Service) Remove(container, name string, addrs ...netip.Addr) ([]names.Entry, error) {
	if name != "" {
		var err error
		if name, err = s.Qualify(name); err != nil {
			return nil, fmt.Errorf("remove a host name of container %s: %w", container, err)
		}
	}
	var out []names.Entry
	err := s.names.Change(func(state *names.State) ([][]byte, error) {
		out = state.Own(func(e names.Entry) bool {
			return e.Container == container && (name == "" || e.Name == name) && (len(addrs) == 0 || slices.Contains(addrs, e.Addr))
		})
		return state.Change(out, nil)
	})
	return out, err // an error cannot happen: the record became smaller
}

// Set replaces the host names of a container. The keys of want are fully qualified. On error
// nothing is changed.
func (s *Service) Set(container string, want map[string][]netip.Addr) error {
	wrap := func(err error) error { return fmt.Errorf("set the host names of container %s: %w", container, err) }
	in := make(map[names.Entry]bool)
	for name, addrs := range want {
		fqdn, err := s.Qualify(name)
		if err != nil {
			return wrap(err)
		}
		for _, a := range addrs {
			in[s.entry(container, fqdn, a)] = true
		}
	}
	err := s.names.Change(func(state *names.State) ([][]byte, error) {
		out := state.Own(func(e names.Entry) bool { return e.Container == container && !in[e] })
		return state.Change(out, slices.Collect(maps.Keys(in)))
	})
	if err != nil {
		return wrap(err)
	}
	return nil
}

// RemoveContainer removes all names of a container.
func (s *Service) RemoveContainer(container string) { _, _ = s.Remove(container, "") }

// PeersChanged reports the peers that the mesh reaches, with their keys. The Service owns the map
// from now on.
func (s *Service) PeersChanged(peers map[peer.Name]peer.Key) { s.names.PeersChanged(peers) }

// Resolve answers as the server would answer a container: it returns the addresses of a name, or
// the names of an address.
func (s *Service) Resolve(ctx context.Context, name string) ([]string, error) {
	if s.cfg.Off {
		return nil, fmt.Errorf("look up %s: %w", name, ErrOff)
	}
	types := []uint16{dns.TypeA, dns.TypeAAAA}
	question := dns.Fqdn(name)
	if a, err := netip.ParseAddr(name); err == nil {
		types = []uint16{dns.TypePTR}
		if question, err = dns.ReverseAddr(a.WithZone("").Unmap().String()); err != nil {
			return nil, fmt.Errorf("look up %s: %w", name, err)
		}
	} else if _, ok := dns.IsDomainName(question); !ok || len(name) == 0 {
		return nil, fmt.Errorf("look up %q: want a host name or an address", name)
	}
	var found []string
	for _, t := range types {
		m, err := s.server.Resolve(ctx, new(dns.Msg).SetQuestion(question, t))
		if err != nil {
			return found, fmt.Errorf("look up %s: %w", name, err)
		}
		for _, rr := range m.Answer {
			switch rr := rr.(type) {
			case *dns.A:
				found = append(found, rr.A.String())
			case *dns.AAAA:
				found = append(found, rr.AAAA.String())
			case *dns.PTR:
				found = append(found, rr.Ptr)
			}
		}
	}
	return found, nil
}

// Status is the state of a Service.
type Status struct {
	Off       bool
	Domain    string
	TTL       uint32
	Listening []Listening
	Upstream  []forward.Status
	Fault     string // of reading the host's name servers; "" if there is none
	Queries   []server.Count
	Busy      uint64 // queries that were not forwarded because there were too many
}

// Status returns the state without the names; see Entries.
func (s *Service) Status() Status {
	st := Status{
		Off: s.cfg.Off, Domain: s.cfg.Domain, TTL: s.cfg.TTL, Upstream: s.forward.Status(), Queries: s.server.Counts(), Busy: s.forward.Busy(),
	}
	if p := s.listening.Load(); p != nil {
		st.Listening = *p
	}
	if f := s.upstreamFault.Load(); f != nil {
		st.Fault = *f
	}
	return st
}

// Entries returns the entries of all peers in order of name, and how many it leaves out as
// there are more than limit. If so, each peer has a fair share of the limit. It asks for the
// owner of each address that it returns. The caller owns the list.
func (s *Service) Entries(limit int) (list []names.Listed, omitted int) {
	if s.cfg.Off {
		return nil, 0
	}
	if limit <= 0 {
		return nil, s.table.Len()
	}
	s.names.Read(func(state *names.State) { list, omitted = state.List(limit) })
	names.Sort(list)
	s.table.MarkRefused(list)
	return list, omitted
}

// CountRefused counts the entries that this host does not answer. It asks for the owner of
// each address, and stops when ctx ends.
func (s *Service) CountRefused(ctx context.Context) int {
	return s.table.CountRefused(func() bool { return ctx.Err() != nil })
}

// RecordStats returns what the replicated names take, and what was refused of them.
func (s *Service) RecordStats() records.Stats { return s.names.Stats() }

// Channel returns the state as a channel that the mesh replicates.
func (s *Service) Channel() gossip.Channel { return s.names.Channel() }
