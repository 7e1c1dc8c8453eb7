package hostile

import (
	"cmp"
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/weft-net/weft/dns/names"
	"github.com/weft-net/weft/mesh/bindings"
	"github.com/weft-net/weft/mesh/groups"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/records"
	"github.com/weft-net/weft/mesh/rotation"
	"github.com/weft-net/weft/mesh/session"
)

// Config configures an Attack.
type Config struct {
	Targets  []string // HOST:PORT of the routers
	Password string   // of the mesh; empty if it has none
	// Range is the address range of the mesh.
	Range netip.Prefix
	// Sources are the addresses that strangers dial from, in turn. Members dial from the
	// address that the kernel chooses.
	Sources []netip.Addr
	// Nickname and Addrs are what all entries and hellos say; the nickname is "liar" if empty.
	Nickname string
	Addrs    []netip.AddrPort
	// Rate bounds the steps of a flood at each router, per second; 0 for no limit.
	Rate int
}

// Attack is a hostile host: its identities, and those of the peers that it made up. It is
// safe for concurrent use.
type Attack struct {
	// Constant.

	cfg      Config
	psk      session.PSK
	instance uint64 // of all identities
	first    *Identity

	numbers, sent, dials atomic.Uint64

	mu     sync.Mutex
	madeUp []*Identity
	names  map[peer.Name]bool // of madeUp
}

// New returns an Attack that has done nothing yet.
func New(cfg Config) (*Attack, error) {
	cfg.Nickname = cmp.Or(cfg.Nickname, "liar")
	a := &Attack{cfg: cfg, names: make(map[peer.Name]bool)}
	var b [8]byte
	if _, err := crand.Read(b[:]); err != nil {
		return nil, fmt.Errorf("start an attack: read random bytes: %w", err)
	}
	a.instance = binary.BigEndian.Uint64(b[:])
	var err error
	if a.first, err = a.NewIdentity(peer.Name{}); err != nil {
		return nil, err
	}
	if cfg.Password != "" {
		if a.psk, err = session.DerivePSK(cfg.Password); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// Sent returns how many records and connections of strangers were sent.
func (a *Attack) Sent() uint64 { return a.sent.Load() }

// Run floods all routers until ctx is done.
func (a *Attack) Run(ctx context.Context, f *Flood) {
	var wg sync.WaitGroup
	for i, target := range a.cfg.Targets {
		limit := rate.Inf
		if a.cfg.Rate > 0 {
			limit = rate.Limit(a.cfg.Rate)
		}
		r := &run{Attack: a, ctx: ctx, index: i, target: target, limiter: rate.NewLimiter(limit, 16), rng: rand.New(rand.NewPCG(a.instance, uint64(len(target))))}
		wg.Go(func() { f.run(r) })
	}
	wg.Wait()
}

// run is a flood at one router. One goroutine uses it.
type run struct {
	*Attack
	ctx     context.Context
	index   int // of the target
	target  string
	limiter *rate.Limiter
	rng     *rand.Rand
	// Records of made-up peers, by their number.
	hostNames map[int]*names.State
	bindings  map[int]*bindings.State
	groups    map[int]*groups.State
	passwords map[int]*records.Map[rotation.State]
}

// pace waits until the next step may begin, and reports whether there is one.
func (r *run) pace() bool { return r.limiter.Wait(r.ctx) == nil }

// member repeats a step in a session, and in the next one if that ends: a peer that
// misbehaved comes back under another name.
func (r *run) member(step func(p *Peer, n int) error) {
	id := r.first
	for n := 0; r.ctx.Err() == nil; {
		if p, err := r.Dial(r.ctx, r.target, id); err == nil {
			n = r.session(p, n, step)
		}
		// It is a name that others, or this peer, have got a bad reputation for.
		if fresh, err := r.NewIdentity(peer.Name{}); err == nil {
			id = fresh
		}
		select {
		case <-r.ctx.Done():
		case <-time.After(20 * time.Millisecond): // else refused handshakes are all that it does
		}
	}
}

func (r *run) session(p *Peer, n int, step func(p *Peer, n int) error) int {
	stop := context.AfterFunc(r.ctx, func() { p.Close() })
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- p.Read() }()
	for r.pace() {
		if err := step(p, n); err != nil {
			break
		}
		n++
	}
	p.Close()
	<-ended
	return n
}

// connect dials a router, as a stranger from the next source.
func (a *Attack) connect(ctx context.Context, target string, stranger bool) (net.Conn, error) {
	d := net.Dialer{Timeout: session.Timeout}
	if n := len(a.cfg.Sources); n > 0 && stranger {
		d.LocalAddr = &net.TCPAddr{IP: a.cfg.Sources[int(a.dials.Add(1))%n].AsSlice()}
	}
	return d.DialContext(ctx, "tcp", target)
}

// made returns the made-up peer of a number.
func (a *Attack) made(i int) (*Identity, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.madeUp) <= i {
		id, err := a.NewIdentity(peer.Name{})
		if err != nil {
			return nil, err
		}
		a.madeUp = append(a.madeUp, id)
		a.names[id.Name] = true
	}
	return a.madeUp[i], nil
}

func (a *Attack) isMadeUp(n peer.Name) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.names[n]
}

// entry returns the entry of a made-up peer with links to others. If ahead is not zero,
// its version is so far ahead of the clock.
func (a *Attack) entry(id *Identity, to []peer.Name, ahead time.Duration) ([]byte, error) {
	if ahead == 0 {
		id.mu.Lock()
		defer id.mu.Unlock()
		return id.entry(to), nil
	}
	topo, err := a.database(id.Identity, time.Now().Add(ahead))
	if err != nil {
		return nil, err
	}
	return topo.SetLinks(sessionsWith(to)), nil
}
