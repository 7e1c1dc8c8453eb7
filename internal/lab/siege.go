package lab

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/process"
	"github.com/weft-net/weft/mesh"
)

// Limits of what honest hosts may suffer while others flood them.
const (
	MaxLoss   = 0.01            // of pings between containers
	MaxAttach = 2 * time.Second // of one container
	MaxStatus = time.Second     // until a router has reported its state
	MaxMemory = 200 << 20       // resident bytes of a router
	// On a busy machine times may be idleFactor times as long as without a flood.
	idleFactor = 10
)

const (
	siegeContainer = "c"
	siegePing      = 20 * time.Millisecond
	siegePingWait  = time.Second
	siegeLook      = 500 * time.Millisecond
	// SiegeSources is how many more addresses the hostile host has: strangers dial from
	// all of them.
	SiegeSources = 10
	// siegeRate is how many messages per second a router gets. The attacker shares the
	// CPUs with the routers here, so it must not take them.
	siegeRate = 2000
)

// Siege is a lab whose last host is hostile. The others run honest routers, each with a
// container.
type Siege struct {
	lab    *testbed.Lab
	honest int
	addrs  []netip.Addr // of the containers, by host
}

// NewSiege starts the routers of all hosts of a lab but the last, and waits until their
// containers reach each other.
func NewSiege(ctx context.Context, l *testbed.Lab) (*Siege, error) {
	return NewSiegeOf(ctx, l, l.Hosts-1)
}

// NewSiegeOf is NewSiege for a number of honest hosts. Hosts between them and the hostile
// one have no router yet.
func NewSiegeOf(ctx context.Context, l *testbed.Lab, honest int) (*Siege, error) {
	s := &Siege{lab: l, honest: honest, addrs: make([]netip.Addr, honest+1)}
	if honest < 2 || honest >= l.Hosts {
		return nil, fmt.Errorf("%d of %d hosts are honest: want two honest ones and a hostile one at least", honest, l.Hosts)
	}
	ctx, cancel := context.WithTimeout(ctx, convergeTimeout+time.Duration(l.Hosts)*hostTimeout)
	defer cancel()
	for n := 1; n <= s.honest; n++ {
		args := append([]string{"--ipalloc-init", "consensus=" + strconv.Itoa(s.honest)}, l.Peers(n)...)
		if err := l.Launch(ctx, n, args...); err != nil {
			return nil, err
		}
	}
	if err := l.WaitConverged(ctx); err != nil {
		return nil, err
	}
	for n := 1; n <= s.honest; n++ {
		var err error
		if s.addrs[n], err = AddContainer(ctx, l, s.place(n)); err != nil {
			return nil, err
		}
	}
	for n := 1; n <= s.honest; n++ {
		if _, err := testbed.Ping(ctx, l.Netns(s.place(n)), s.addrs[s.next(n)]); err != nil {
			return nil, fmt.Errorf("from %s: %w", s.place(n), err)
		}
	}
	return s, s.addSources()
}

func (s *Siege) place(n int) testbed.Place { return testbed.Place{Host: n, Container: siegeContainer} }

// next returns the honest host after n.
func (s *Siege) next(n int) int { return n%s.honest + 1 }

func siegeSource(i int) netip.Addr { return testbed.Addr4(testbed.MaxHosts - i) }

// addSources gives the hostile host more addresses.
func (s *Siege) addSources() error {
	return netdev.Do(s.lab.Netns(testbed.Place{Host: s.lab.Hosts}), func() error {
		eth, err := netlink.LinkByName(testbed.HostInterface)
		if err != nil {
			return fmt.Errorf("find %s of the hostile host: %w", testbed.HostInterface, err)
		}
		for i := range SiegeSources {
			a := &netlink.Addr{IPNet: netlink.NewIPNet(siegeSource(i).AsSlice())} // on-link by the /24 of the first one
			if err := netlink.AddrAdd(eth, a); err != nil {
				return fmt.Errorf("add %s to the hostile host: %w", siegeSource(i), err)
			}
		}
		return nil
	})
}

// Besiege makes a lab, floods it for a time, removes it and returns the damage. The last
// host of the lab is the hostile one.
func Besiege(ctx context.Context, c testbed.Config, flood string, duration time.Duration) (d *Damage, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("lab hostile needs the rights of root; try with sudo")
	}
	l, err := testbed.Create(c)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, testbed.Down(c.Name)) }()
	s, err := NewSiege(ctx, l)
	if err != nil {
		return nil, err
	}
	return s.Run(ctx, flood, duration)
}

// Damage is what a flood did to the honest hosts.
type Damage struct {
	Flood          string
	Sent           uint64 // messages and connections of the hostile host
	Pings, Lost    int    // one is sent every 20 ms, whether or not others were answered
	Attaches       int
	Attach, Status time.Duration // the longest; of a status as text, or of a summary
	// IdleAttach and IdleStatus are the longest just before the flood.
	IdleAttach, IdleStatus time.Duration
	Memory                 uint64   // resident bytes of the largest router
	CPU                    float64  // of all honest routers, in CPUs
	Ended                  []string // sessions between honest hosts that ended
	Given                  float64  // share of the addresses of honest hosts that others own now
	Moved                  []string // containers whose address others own now
	Failed                 []error  // of attaches and reports
}

// Loss returns the share of pings that were lost.
func (d *Damage) Loss() float64 { return float64(d.Lost) / float64(max(1, d.Pings)) }

// Broken returns the limits that the flood broke. maxGiven is the one for Given. slack is what a
// machine that is busy with other things may add to the times.
func (d *Damage) Broken(maxGiven float64, slack time.Duration) (out []string) {
	add := func(broken bool, format string, args ...any) {
		if broken {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	add(d.Sent == 0, "the hostile host sent nothing")
	add(d.Pings == 0 || d.Attaches == 0, "%d pings and %d attaches were tried", d.Pings, d.Attaches)
	add(d.Loss() > MaxLoss, "%.1f %% of the pings were lost, at most %.0f %%", 100*d.Loss(), 100*MaxLoss)
	most := max(MaxAttach, idleFactor*d.IdleAttach) + slack
	add(d.Attach > most, "attach took %.2f s, at most %v", d.Attach.Seconds(), most)
	most = max(MaxStatus, idleFactor*d.IdleStatus) + slack
	add(d.Status > most, "status took %.2f s, at most %v", d.Status.Seconds(), most)
	add(d.Memory > MaxMemory, "a router used %d MB, at most %d MB", d.Memory>>20, MaxMemory>>20)
	add(len(d.Ended) > 0, "sessions ended: %s", strings.Join(d.Ended, ", "))
	add(d.Given > maxGiven, "others got %.1f %% of the addresses, at most %.0f %%", 100*d.Given, 100*maxGiven)
	add(len(d.Moved) > 0, "addresses in use changed owner: %s", strings.Join(d.Moved, ", "))
	for _, err := range d.Failed {
		add(true, "%v", err)
	}
	return out
}

// Run floods the honest hosts for a time and returns the damage. The flood is one of those
// that weft lab hostile lists.
func (s *Siege) Run(ctx context.Context, flood string, duration time.Duration) (*Damage, error) {
	before, err := s.look(ctx)
	if err != nil {
		return nil, err
	}
	d := &Damage{Flood: flood}
	idle := &watch{Siege: s, damage: &Damage{}, ctx: ctx}
	for n := range s.honest {
		idle.attachOnce("i"+strconv.Itoa(n), n+1)
		idle.statusOnce(n + 1)
	}
	if err := errors.Join(idle.damage.Failed...); err != nil {
		return nil, err
	}
	d.IdleAttach, d.IdleStatus = idle.damage.Attach, idle.damage.Status
	ctx, cancel := context.WithTimeout(ctx, duration)
	defer cancel()
	w := &watch{Siege: s, damage: d, ctx: ctx}
	var wg sync.WaitGroup
	for n := 1; n <= s.honest; n++ {
		wg.Go(func() { w.ping(n) })
	}
	wg.Go(w.attach)
	wg.Go(w.status)
	start := time.Now()
	d.Sent, err = s.flood(ctx, flood, before.addrs)
	cancel()
	wg.Wait()
	if err != nil {
		return nil, err
	}
	after, err := s.look(context.WithoutCancel(ctx))
	if err != nil {
		return nil, err
	}
	d.CPU = (after.cpu - before.cpu).Seconds() / time.Since(start).Seconds()
	s.compare(d, before, after)
	return d, nil
}

// Flood floods the honest hosts until ctx is done, measures nothing, and returns how many
// messages and connections the hostile host sent.
func (s *Siege) Flood(ctx context.Context, flood string) (sent uint64, err error) {
	st, err := s.look(ctx)
	if err != nil {
		return 0, err
	}
	return s.flood(ctx, flood, st.addrs)
}

// flood runs the hostile peer until ctx is done, and returns how much it sent.
func (s *Siege) flood(ctx context.Context, name string, addrs netip.Prefix) (sent uint64, err error) {
	args := []string{"lab", "hostile", "send", name, "--rate", strconv.Itoa(siegeRate), "--range", addrs.String()}
	for n := 1; n <= s.honest; n++ {
		args = append(args, "--target", netip.AddrPortFrom(testbed.Addr4(n), mesh.DefaultPort).String())
	}
	for i := range SiegeSources {
		args = append(args, "--source", siegeSource(i).String())
	}
	host := testbed.Place{Host: s.lab.Hosts}
	// It ends when its standard input does, so that it can say what it sent.
	cmd := s.lab.Command(context.WithoutCancel(ctx), host, cmp.Or(s.lab.Exe, "weft"), args...)
	cmd.Env = append(cmd.Env, "WEFT_PASSWORD="+s.lab.Password)
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, fmt.Errorf("flood from %s: %w", host, err)
	}
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	if err := s.lab.Start(host, cmd); err != nil {
		return 0, fmt.Errorf("flood from %s: %w", host, err)
	}
	stop := context.AfterFunc(ctx, func() { in.Close() })
	defer stop()
	err = cmd.Wait()
	if err != nil || ctx.Err() == nil {
		return 0, fmt.Errorf("flood from %s: it ended: %s: %w", host, process.LastError(log.Bytes()), cmp.Or(err, errors.New("before its time")))
	}
	line, _, _ := bufio.NewReader(&out).ReadLine()
	if sent, err = strconv.ParseUint(string(line), 10, 64); err != nil {
		return 0, fmt.Errorf("flood from %s: it printed %.80q: %w", host, out.String(), err)
	}
	return sent, nil
}

// watch measures one flood.
type watch struct {
	*Siege
	ctx context.Context

	mu     sync.Mutex
	damage *Damage
}

func (w *watch) note(f func(d *Damage)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(w.damage)
}

func (w *watch) failed(err error) {
	if w.ctx.Err() == nil {
		w.note(func(d *Damage) { d.Failed = append(d.Failed, err) })
	}
}

// ping pings from the container of a host to that of the next one.
func (w *watch) ping(n int) {
	p, err := testbed.NewPinger(w.lab.Netns(w.place(n)), w.addrs[w.next(n)])
	if err != nil {
		w.failed(err)
		return
	}
	defer p.Close()
	sent, lost, err := p.Steady(w.ctx, 8, siegePing, siegePingWait)
	w.note(func(d *Damage) {
		d.Pings += sent
		d.Lost += lost
		if err != nil {
			d.Failed = append(d.Failed, err)
		}
	})
}

// attach attaches a container to one host after the other, and removes it.
func (w *watch) attach() {
	for i := 0; w.ctx.Err() == nil; i++ {
		w.attachOnce("x"+strconv.Itoa(i), i%w.honest+1)
		w.pause()
	}
}

func (w *watch) attachOnce(name string, host int) {
	place := testbed.Place{Host: host, Container: name}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), idleFactor*MaxAttach)
	defer cancel()
	start := time.Now()
	_, err := AddContainer(ctx, w.lab, place)
	took := time.Since(start)
	w.note(func(d *Damage) { d.Attaches++; d.Attach = max(d.Attach, took) })
	if err != nil {
		w.failed(fmt.Errorf("attach on %s: %w", place, err))
	} else if err := w.lab.RemoveContainer(ctx, place); err != nil {
		w.failed(fmt.Errorf("detach on %s: %w", place, err))
	}
}

// status asks all routers for their state, and measures their memory.
func (w *watch) status() {
	for w.ctx.Err() == nil {
		for n := 1; n <= w.honest; n++ {
			w.statusOnce(n)
		}
		w.pause()
	}
}

func (w *watch) statusOnce(host int) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), idleFactor*MaxStatus)
	defer cancel()
	start := time.Now()
	if err := api.NewClient(w.lab.Socket(host)).StatusText(ctx, "", io.Discard); err != nil {
		w.failed(fmt.Errorf("status on h%d: %w", host, err))
	}
	took := time.Since(start)
	// What doctor, stop and the agent of Kubernetes ask for.
	start = time.Now()
	if _, err := api.NewClient(w.lab.Socket(host)).Summary(ctx, api.NoLists); err != nil {
		w.failed(fmt.Errorf("summary of h%d: %w", host, err))
	}
	took = max(took, time.Since(start))
	use, err := w.usage(host)
	if err != nil {
		w.failed(err)
	}
	w.note(func(d *Damage) { d.Status, d.Memory = max(d.Status, took), max(d.Memory, use.Resident) })
}

func (w *watch) pause() {
	select {
	case <-time.After(siegeLook):
	case <-w.ctx.Done():
	}
}

func (s *Siege) usage(n int) (testbed.Use, error) {
	pid, ok := s.lab.RouterPID(n)
	if !ok {
		return testbed.Use{}, fmt.Errorf("the router of h%d does not run", n)
	}
	return testbed.Usage(pid)
}

// siegeState is what must not change.
type siegeState struct {
	cpu      time.Duration
	sessions map[string]bool // between honest hosts
	addrs    netip.Prefix    // the address range
	ring     []api.RingEntry // as h1 sees it
	names    map[string]bool // of honest peers
}

func (s *Siege) look(ctx context.Context) (*siegeState, error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	st := &siegeState{sessions: make(map[string]bool), names: make(map[string]bool)}
	reports := make([]*api.Report, s.honest+1)
	for n := 1; n <= s.honest; n++ {
		r, err := api.NewClient(s.lab.Socket(n)).Summary(ctx, api.ListRing)
		if err != nil {
			return nil, fmt.Errorf("status on h%d: %w", n, err)
		}
		reports[n] = r
		st.names[r.Router.Name] = true
		use, err := s.usage(n)
		if err != nil {
			return nil, err
		}
		st.cpu += use.CPU
	}
	for n := 1; n <= s.honest; n++ {
		for _, c := range reports[n].Router.Connections {
			// The port of the one who dialled is another one for each session.
			if st.names[c.Name] && (c.State == api.StateEstablished || c.State == api.StatePending) && !c.Outbound {
				st.sessions[fmt.Sprintf("h%d with %s at %s", n, c.NickName, c.Address)] = true
			}
		}
	}
	if reports[1].IPAM == nil {
		return nil, errors.New("h1 reports no addresses")
	}
	st.ring, st.addrs = reports[1].IPAM.Entries, reports[1].IPAM.Range
	return st, nil
}

// owner returns who owns an address.
func (st *siegeState) owner(a netip.Addr) (peer string) {
	for _, e := range st.ring {
		if e.Token.Compare(a) <= 0 {
			peer = e.Peer
		}
	}
	return peer
}

// share returns how many addresses the honest hosts own.
func (st *siegeState) share(honest map[string]bool) (n float64) {
	for _, e := range st.ring {
		if honest[e.Peer] {
			n += e.Size
		}
	}
	return n
}

func (s *Siege) compare(d *Damage, before, after *siegeState) {
	for session := range before.sessions {
		if !after.sessions[session] {
			d.Ended = append(d.Ended, session)
		}
	}
	slices.Sort(d.Ended)
	was := before.share(before.names)
	d.Given = (was - after.share(before.names)) / max(1, was)
	for n := 1; n <= s.honest; n++ {
		if a := s.addrs[n]; before.owner(a) != after.owner(a) {
			d.Moved = append(d.Moved, fmt.Sprintf("%s of h%d", a, n))
		}
	}
}
