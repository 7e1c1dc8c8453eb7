package kernel

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/hostfile"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/owned"
)

//go:generate go tool bpf2go -target bpfel -output-stem guard -cflags "-O2 -mcpu=v3 -Wall -Wextra -Werror -fno-strict-aliasing -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu" guard bpf/guard.c

// Guard is the spoof guard of one network namespace. Its methods may be called from any
// goroutine. See "Spoof guard" in the documentation of the package.
type Guard struct {
	// Constant.
	dir   string // of the pins
	root  string // the folder of a file system of type bpf that dir is in
	objs  guardObjects
	ns    netns.NsHandle
	noTCX bool // for tests of clsact

	// busy is held by every method, and by Close for writing. Lock order: busy, guarded.mu, mu.
	busy   sync.RWMutex
	closed bool // guarded by busy

	mu    sync.Mutex
	ports map[int]*guarded
	// earlier are the ports that an earlier process guarded, and this one not yet.
	earlier map[int]bool
	// first are the ports at which other programs of TCX are, or will be.
	first map[int]bool
}

// guarded is a port that the guard knows.
type guarded struct {
	mu sync.Mutex // held while the program is attached, which may take the kernel 20 ms
	GuardPort
	gone     bool      // it is no longer in Guard.ports
	link     link.Link // nil if attached by clsact
	attached bool      // by clsact, by this process
	since    time.Time // when it became known
	checked  time.Time // when Faults looked at its filter
	// waits: other software is going to install an ingress qdisc, so no program is attached
	// yet.
	waits bool
}

// guardDir is the folder of the guard's pins in the folder of all pins.
const guardDir = "guard"

// qdiscGrace is how long the guard waits, on kernels without TCX, until other software has
// installed the ingress qdisc of a port whose rate it limits. The kernel refuses a second one.
const qdiscGrace = 10 * time.Second

// OpenGuard loads the guard's program, for the network namespace of the calling thread.
// Programs of an earlier process stay attached as they are until Protect or Release is called
// for their ports. PinDir is that of Options. If errors.Is(err, ErrUnsupported), there is no use
// in trying again.
func OpenGuard(pinDir string) (_ *Guard, err error) {
	g := &Guard{root: pinDir, dir: filepath.Join(pinDir, guardDir), ports: make(map[int]*guarded), first: make(map[int]bool)}
	wrap := func(what string, err error) error {
		return fmt.Errorf("open the spoof guard: %w: %s: %w", ErrUnsupported, what, err)
	}
	if err := g.mount(); err != nil {
		return nil, wrap("folder of pins", err)
	}
	_ = rlimit.RemoveMemlock() // see load
	if err := loadGuardObjects(&g.objs, nil); err != nil {
		return nil, wrap("load the program", err)
	}
	if g.ns, err = netns.Get(); err != nil {
		_ = g.objs.Close()
		return nil, wrap("open network namespace", err)
	}
	if g.earlier, err = g.findEarlier(); err != nil {
		_ = g.Close()
		return nil, fmt.Errorf("open the spoof guard: find the programs of an earlier process: %w", err)
	}
	return g, nil
}

// findEarlier returns the ports that have a program of an earlier process.
func (g *Guard) findEarlier() (map[int]bool, error) {
	earlier := make(map[int]bool)
	entries, err := os.ReadDir(g.dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if n, err := strconv.Atoi(strings.TrimPrefix(e.Name(), pinPrefix)); err == nil {
			earlier[n] = true
		}
	}
	list, err := filters(guardPriority)
	for _, h := range list {
		earlier[h.ifindex] = true
	}
	return earlier, err
}

// mount makes the folder of the pins, on a file system of type bpf.
func (g *Guard) mount() error {
	if err := hostfile.Private(g.root); err != nil {
		return err
	}
	if err := mountBPF(g.root); err != nil {
		return err
	}
	return os.MkdirAll(g.dir, 0o700)
}

// Close closes what the process holds. The programs stay attached, and go on with what they
// know. No other method may be called after Close.
func (g *Guard) Close() error {
	g.busy.Lock()
	defer g.busy.Unlock()
	if g.closed {
		return nil
	}
	g.closed = true
	var errs []error
	for _, p := range g.ports {
		if p.link != nil {
			errs = append(errs, p.link.Close())
		}
	}
	return errors.Join(append(errs, g.objs.Close(), g.ns.Close())...)
}

// pinPrefix begins the name of the pin of a port, which ends in its ifindex.
const pinPrefix = "port-"

func (g *Guard) pin(ifindex int) string { return filepath.Join(g.dir, pinPrefix+strconv.Itoa(ifindex)) }

func guardHook(ifindex int) hook { return hook{onGuard, ifindex} }

// Protect makes a port drop frames of its container with other addresses than those of p. It
// may be called again, and takes effect at once. A port that is gone is no error.
func (g *Guard) Protect(p GuardPort) error {
	g.busy.RLock()
	defer g.busy.RUnlock()
	if g.closed {
		return owned.ErrWaits
	}
	now := g.lock(p.Ifindex, true)
	defer now.mu.Unlock()
	err := netdev.DoIn(g.ns, func() error { return g.protect(now, p) })
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("guard interface %d against spoofing: %w", p.Ifindex, err)
	}
	return nil
}

// protect is Protect with the port locked, in the namespace. What may be sent is written first.
func (g *Guard) protect(now *guarded, p GuardPort) error {
	if err := g.write(now.GuardPort, p); err != nil {
		return err
	}
	now.GuardPort = p
	return g.attach(now)
}

// lock returns a port, which is locked. If it is not known, it becomes known or lock returns nil.
func (g *Guard) lock(ifindex int, add bool) *guarded {
	for {
		g.mu.Lock()
		p := g.ports[ifindex]
		if p == nil && add {
			p = &guarded{GuardPort: GuardPort{Ifindex: ifindex}, since: time.Now()}
			g.ports[ifindex] = p
			delete(g.earlier, ifindex)
		}
		g.mu.Unlock()
		if p == nil {
			return nil
		}
		p.mu.Lock()
		if !p.gone {
			return p
		}
		p.mu.Unlock()
	}
}

// PutFirst makes the guard of a port see a frame before programs of TCX that the caller is going
// to attach there. Those run before filters of clsact.
func (g *Guard) PutFirst(ifindex int) error {
	g.busy.RLock()
	defer g.busy.RUnlock()
	if g.closed {
		return owned.ErrWaits
	}
	g.mu.Lock()
	g.first[ifindex] = true
	g.mu.Unlock()
	p := g.lock(ifindex, false)
	if p == nil {
		return nil // Protect knows now
	}
	defer p.mu.Unlock()
	if err := netdev.DoIn(g.ns, func() error { return g.attach(p) }); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("put the spoof guard of interface %d first: %w", ifindex, err)
	}
	return nil
}

// write writes what a port may send, instead of old. A program sees the old addresses or the new
// ones.
func (g *Guard) write(old, p GuardPort) error {
	e, more := p.entry()
	key := uint32(p.Ifindex)
	err := g.objs.Drops.Update(key, &guardDrops{}, ebpf.UpdateNoExist)
	if err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
		return fmt.Errorf("write map drops: %w", err)
	}
	for _, a := range more {
		if err := g.objs.Addrs.Put(&guardKey{key, AddrOf(a)}, uint32(1)); err != nil {
			return fmt.Errorf("write address %s to map addrs: %w", a, err)
		}
	}
	if err := g.objs.Ports.Put(key, &e); err != nil {
		return fmt.Errorf("write map ports: %w", err)
	}
	_, before := old.entry()
	return g.forget(key, slices.DeleteFunc(before, func(a netip.Addr) bool { return slices.Contains(more, a) }))
}

// forget deletes further addresses of a port.
func (g *Guard) forget(key uint32, addrs []netip.Addr) error {
	for _, a := range addrs {
		if err := deleted(g.objs.Addrs.Delete(&guardKey{key, AddrOf(a)}), "address", a.String()); err != nil {
			return err
		}
	}
	return nil
}

// attach attaches the program to a port, or replaces that of an earlier process. The port is
// locked, and the thread is in the namespace.
//
// A filter of clsact is attached in 0.3 ms. For TCX the kernel waits 10 ms for all CPUs
// (synchronize_rcu), for which nobody who connects a container should wait. But programs of TCX run
// before filters, and next to a filter no other software can install an ingress qdisc.
func (g *Guard) attach(p *guarded) error {
	if p.link != nil && alive(p.link, p.Ifindex) {
		return g.pinLink(p)
	}
	if p.link != nil {
		_ = p.link.Close()
		p.link = nil
	}
	if !g.noTCX && g.needsTCX(p) {
		err := g.attachTCX(p)
		if err == nil {
			return g.dropFilter(p)
		}
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return err
		}
	}
	h := guardHook(p.Ifindex)
	if p.RateLimited && !hasFilter(h) && !hasIngress(p.Ifindex) && time.Since(p.since) < qdiscGrace {
		p.waits = true
		return nil
	}
	p.waits = false
	if p.attached && hasFilter(h) {
		return nil
	}
	if err := attachClsact(h, g.objs.Guard); err != nil {
		return fmt.Errorf("attach clsact filter: %w", err)
	}
	p.attached = true
	return nil
}

// needsTCX reports whether a filter of clsact would not do.
func (g *Guard) needsTCX(p *guarded) bool {
	g.mu.Lock()
	first := g.first[p.Ifindex]
	g.mu.Unlock()
	if first || p.RateLimited {
		return true
	}
	if _, err := os.Lstat(g.pin(p.Ifindex)); err == nil {
		return true // of an earlier process
	}
	// Programs of an earlier process, or of other software.
	r, err := link.QueryPrograms(link.QueryOptions{Target: p.Ifindex, Attach: ebpf.AttachTCXIngress})
	return err == nil && len(r.Programs) > 0
}

// dropFilter removes the filter of a port whose program is attached by TCX.
func (g *Guard) dropFilter(p *guarded) error {
	p.attached = false
	h := guardHook(p.Ifindex)
	if !hasFilter(h) {
		return nil
	}
	_, err := removeFilter(h) // frames to the container flow
	return err
}

func (g *Guard) attachTCX(p *guarded) error {
	if err := g.mount(); err != nil {
		return err
	}
	pin := g.pin(p.Ifindex)
	l, err := link.LoadPinnedLink(pin, nil)
	if err == nil {
		if alive(l, p.Ifindex) && l.Update(g.objs.Guard) == nil {
			p.link = l
			return nil
		}
		_ = l.Close()
	}
	if err := os.Remove(pin); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove what was attached: %w", err)
	}
	l, err = link.AttachTCX(link.TCXOptions{
		Interface: p.Ifindex, Program: g.objs.Guard, Attach: ebpf.AttachTCXIngress, Anchor: link.Head(),
	})
	if err != nil {
		return fmt.Errorf("attach tcx: %w", err)
	}
	p.link = l
	return g.pinLink(p)
}

// pinLink pins what is attached, so that it outlives the process.
func (g *Guard) pinLink(p *guarded) error {
	pin := g.pin(p.Ifindex)
	if _, err := os.Lstat(pin); err == nil {
		return nil
	}
	if err := g.mount(); err != nil {
		return err
	}
	if err := errors.Join(p.link.Unpin(), p.link.Pin(pin)); err != nil {
		return fmt.Errorf("pin what is attached: %w", err)
	}
	return nil
}

// hasIngress reports whether an interface has an ingress qdisc of any kind.
func hasIngress(ifindex int) bool {
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return false
	}
	all, err := netdev.Dump(func() ([]netlink.Qdisc, error) { return netlink.QdiscList(l) })
	return err == nil && slices.ContainsFunc(all, func(q netlink.Qdisc) bool { return q.Attrs().Handle == netlink.MakeHandle(0xffff, 0) })
}

// Faults returns how the guard of a port differs from the desired state, in words. It is cheap
// enough for thousands of ports a second. The error is owned.ErrWaits if the port is busy.
func (g *Guard) Faults(p GuardPort) (faults []string, err error) {
	g.busy.RLock()
	defer g.busy.RUnlock()
	g.mu.Lock()
	now, ports := g.ports[p.Ifindex], len(g.ports)
	g.mu.Unlock()
	switch {
	case g.closed || now != nil && !now.mu.TryLock():
		return nil, owned.ErrWaits
	case now == nil:
		return []string{"it is not attached"}, nil
	}
	defer now.mu.Unlock()
	fault, err := g.attachFault(now, time.Duration(ports)*filterPause)
	if fault != "" {
		faults = append(faults, fault)
	}
	if !now.equal(p) || !g.isWritten(p) {
		faults = append(faults, "it knows other addresses than the container has")
	}
	return faults, err
}

// attachFault says what is wrong with the attachment of a program, "" if nothing is. It reads the
// filter of a port once in a time.
func (g *Guard) attachFault(p *guarded, pause time.Duration) (fault string, err error) {
	if p.link != nil {
		if !alive(p.link, p.Ifindex) {
			return "it is not attached", nil
		}
		if _, err := os.Lstat(g.pin(p.Ifindex)); errors.Is(err, os.ErrNotExist) {
			return "it is not pinned", nil
		}
		return "", nil
	}
	if time.Since(p.checked) < pause {
		return "", nil
	}
	p.checked = time.Now()
	err = netdev.DoIn(g.ns, func() error {
		switch {
		case p.waits && (hasIngress(p.Ifindex) || time.Since(p.since) >= qdiscGrace):
			fault = "it waited for a queueing discipline that limits the rate"
		case !p.waits && !hasFilter(guardHook(p.Ifindex)):
			fault = "it is not attached"
		}
		return nil
	})
	return fault, err
}

// filterPause is how long the guard waits, for each port, until it looks at the filter of a port
// again. To read a filter takes the kernel some 50 us.
const filterPause = 3 * time.Millisecond

// isWritten reports whether the maps have what a port may send.
func (g *Guard) isWritten(p GuardPort) bool {
	want, more := p.entry()
	var have guardPort
	key := uint32(p.Ifindex)
	if g.objs.Ports.Lookup(key, &have) != nil || have != want {
		return false
	}
	var one uint32
	return !slices.ContainsFunc(more, func(a netip.Addr) bool { return g.objs.Addrs.Lookup(&guardKey{key, AddrOf(a)}, &one) != nil })
}

// Release lets everything pass that comes from a port, of this process or an earlier one.
func (g *Guard) Release(ifindex int) error {
	g.busy.RLock()
	defer g.busy.RUnlock()
	if g.closed {
		return owned.ErrWaits
	}
	if err := netdev.DoIn(g.ns, func() error { return g.release(ifindex) }); err != nil {
		return fmt.Errorf("remove the spoof guard of interface %d: %w", ifindex, err)
	}
	return nil
}

func (g *Guard) release(ifindex int) error {
	p := g.lock(ifindex, false)
	if p == nil {
		g.mu.Lock()
		delete(g.earlier, ifindex)
		g.mu.Unlock()
		return g.detach(ifindex, nil)
	}
	defer p.mu.Unlock()
	p.gone = true
	g.mu.Lock()
	delete(g.ports, ifindex)
	g.mu.Unlock()
	_, more := p.entry()
	key := uint32(ifindex)
	return errors.Join(g.detach(ifindex, p.link), deleted(g.objs.Ports.Delete(key), "port", strconv.Itoa(ifindex)),
		deleted(g.objs.Drops.Delete(key), "counters of port", strconv.Itoa(ifindex)), g.forget(key, more))
}

// detach removes the program from a port, of this process or an earlier one.
func (g *Guard) detach(ifindex int, attached link.Link) error {
	var errs []error
	pin := g.pin(ifindex)
	if attached == nil {
		if l, err := link.LoadPinnedLink(pin, nil); err == nil {
			attached = l
		}
	}
	if attached != nil {
		// The kernel ends a link that nothing refers to any more, but later.
		if alive(attached, ifindex) {
			errs = append(errs, attached.Detach())
		}
		errs = append(errs, attached.Close())
	}
	if h := guardHook(ifindex); hasFilter(h) {
		errs = append(errs, detachClsact(h))
	}
	if err := os.Remove(pin); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Has reports whether a port has a guard, of this process or an earlier one.
func (g *Guard) Has(ifindex int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ports[ifindex] != nil || g.earlier[ifindex]
}

// Sweep forgets the ports that are gone. Those that exists reports are not looked up.
func (g *Guard) Sweep(exists func(ifindex int) bool) error {
	g.busy.RLock()
	defer g.busy.RUnlock()
	if g.closed {
		return nil
	}
	g.mu.Lock()
	var missing []int
	for _, known := range []iter.Seq[int]{maps.Keys(g.ports), maps.Keys(g.earlier), maps.Keys(g.first)} {
		for ifindex := range known {
			if !exists(ifindex) {
				missing = append(missing, ifindex)
			}
		}
	}
	g.mu.Unlock()
	var errs []error
	err := netdev.DoIn(g.ns, func() error {
		for _, ifindex := range missing {
			// A port may have come since the caller looked.
			if _, err := netlink.LinkByIndex(ifindex); errors.As(err, new(netlink.LinkNotFoundError)) {
				errs = append(errs, g.release(ifindex))
				g.mu.Lock()
				delete(g.first, ifindex)
				g.mu.Unlock()
			}
		}
		return nil
	})
	if err := errors.Join(append(errs, err)...); err != nil {
		return fmt.Errorf("remove the spoof guards of ports that are gone: %w", err)
	}
	return nil
}

// Drops returns what was dropped of each port that dropped something, by ifindex.
func (g *Guard) Drops() (map[int]GuardDrops, error) {
	g.busy.RLock()
	defer g.busy.RUnlock()
	if g.closed {
		return nil, nil
	}
	all := make(map[int]GuardDrops)
	err := each(g.objs.Drops, func(k uint32, d guardDrops) bool {
		if out := (GuardDrops{Frames: d.Frames, Reason: d.Reason, MAC: net.HardwareAddr(d.MAC[:]), Addr: ToAddr(d.Addr)}); out.Total() > 0 {
			all[int(k)] = out
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("read what the spoof guard dropped: %w", err)
	}
	return all, nil
}

// RemoveGuard removes the guards of all processes from the network namespace of the calling
// thread.
func RemoveGuard(pinDir string) error {
	var errs []error
	if is, err := isBPF(pinDir); err == nil && is {
		errs = append(errs, os.RemoveAll(filepath.Join(pinDir, guardDir)))
	}
	errs = append(errs, removeFilters(guardPriority))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove the spoof guard: %w", err)
	}
	return nil
}
