package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
)

// place is where a program is attached, and the first part of the name of its pin.
type place string

const (
	onPort      place = "port"
	onTAP       place = "tap" // the only one without a pin: the TAP ends with the process
	onVXLAN     place = "vxlan"
	onContainer place = "container"
	onUnderlay  place = "underlay"
	onGuard     place = "guard" // of the spoof guard, which is no part of a Datapath
)

// hook is a place on one interface.
type hook struct {
	at      place
	ifindex int
}

// String returns the name of the pin, which has the interface, as there is one for each
// container.
func (h hook) String() string { return "link-" + string(h.at) + "-" + strconv.Itoa(h.ifindex) }

func parseHook(name string) (h hook, ok bool) {
	at, index, ok := strings.Cut(strings.TrimPrefix(name, "link-"), "-")
	if !ok || !strings.HasPrefix(name, "link-") {
		return hook{}, false
	}
	n, err := strconv.Atoi(index)
	return hook{place(at), n}, err == nil
}

func (h hook) attachType() ebpf.AttachType {
	if h.at == onPort {
		return ebpf.AttachTCXEgress
	}
	return ebpf.AttachTCXIngress
}

// attach attaches prog to h, replacing the program of an earlier process. mu is
// held, or d is not shared yet, and the thread is in the namespace of d.
func (d *Datapath) attach(h hook, prog *ebpf.Program) error {
	wrap := func(what string, err error) error {
		return fmt.Errorf("%s to interface %d, %s: %w", what, h.ifindex, h.at, err)
	}
	if l, ok := d.links[h]; ok {
		if l == nil || alive(l, h.ifindex) {
			return nil
		}
		_ = d.detach(h) // the index belongs to another interface now
	}
	pin := filepath.Join(d.dir, h.String())
	if l, err := link.LoadPinnedLink(pin, nil); err == nil {
		if alive(l, h.ifindex) && l.Update(prog) == nil {
			d.links[h] = l
			return nil
		}
		_ = l.Close()
	}
	if err := os.Remove(pin); err != nil && !errors.Is(err, os.ErrNotExist) {
		return wrap("remove what was attached", err)
	}
	if !d.noTCX {
		l, err := link.AttachTCX(link.TCXOptions{Interface: h.ifindex, Program: prog, Attach: h.attachType()})
		switch {
		case err == nil:
			if h.at != onTAP {
				if err := l.Pin(pin); err != nil {
					_ = l.Close()
					return wrap("pin what is attached", err)
				}
			}
			// The garbage collector would detach a link that nothing refers to.
			d.links[h] = l
			return nil
		case !errors.Is(err, ebpf.ErrNotSupported):
			return wrap("attach tcx", err)
		}
		d.noTCX = true
	}
	if err := attachClsact(h, prog); err != nil {
		return wrap("attach clsact filter", err)
	}
	d.links[h] = nil
	return nil
}

// detach detaches the program from h.
func (d *Datapath) detach(h hook) error {
	l, ok := d.links[h]
	delete(d.links, h)
	if ok && l == nil || d.noTCX {
		return detachClsact(h)
	}
	err := os.Remove(filepath.Join(d.dir, h.String()))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if l != nil {
		err = errors.Join(err, l.Close())
	}
	if err != nil {
		return fmt.Errorf("detach from interface %d, %s: %w", h.ifindex, h.at, err)
	}
	return nil
}

// alive reports whether the link is attached to an existing interface.
func alive(l link.Link, ifindex int) bool {
	info, err := l.Info()
	if err != nil || info.TCX() == nil {
		return false
	}
	return int(info.TCX().Ifindex) == ifindex
}

// expressProgram returns the program of a hook of express, nil for other hooks and
// if the kernel lacks express.
func (d *Datapath) expressProgram(h hook) *ebpf.Program {
	switch h.at {
	case onContainer:
		return d.c.fromContainer
	case onUnderlay:
		return d.c.fromUnderlay
	}
	return nil
}

// adoptFilters replaces the clsact programs of an earlier process on interfaces of
// containers and of the underlay.
func (d *Datapath) adoptFilters() {
	list, err := filters(filterPriority)
	if err != nil {
		d.opts.Log.Warn("look for programs of an earlier router", "err", err)
		return
	}
	for _, h := range list {
		if _, ok := d.links[h]; ok {
			continue
		}
		if prog := d.expressProgram(h); prog == nil {
			err = detachClsact(h)
		} else if err = attachClsact(h, prog); err == nil {
			d.links[h] = nil
		}
		if err != nil {
			d.opts.Log.Warn("exchange the program of an earlier router", "ifindex", h.ifindex, "place", h.at, "err", err)
		}
	}
}

// adoptExpress replaces the programs of an earlier process on interfaces of
// containers and of the underlay, and removes the pins of interfaces that are gone,
// and of old ports and VXLAN devices.
func (d *Datapath) adoptExpress() {
	if d.noTCX {
		d.adoptFilters()
		return
	}
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		h, ok := parseHook(e.Name())
		if !ok {
			continue
		}
		if _, ok := d.links[h]; ok {
			continue
		}
		prog := d.expressProgram(h)
		pin := filepath.Join(d.dir, e.Name())
		l, err := link.LoadPinnedLink(pin, nil)
		if err == nil && prog != nil && alive(l, h.ifindex) && l.Update(prog) == nil {
			d.links[h] = l
			continue
		}
		if err == nil {
			_ = l.Close()
		}
		if err := os.Remove(pin); err != nil {
			d.opts.Log.Warn("remove a pin", "pin", pin, "err", err)
		}
	}
}

// AttachContainer lets frames of a container bypass the bridge. ifindex is the
// host's end of its veth. It is idempotent. An interface that is gone is not an
// error.
func (d *Datapath) AttachContainer(ifindex int) error {
	if d.opts.Guard != nil && d.c.fromContainer != nil {
		if err := d.opts.Guard.PutFirst(ifindex); err != nil {
			return err
		}
	}
	return d.attachExpress(hook{onContainer, ifindex}, d.c.fromContainer)
}

// DetachContainer undoes AttachContainer of this process or an earlier one.
func (d *Datapath) DetachContainer(ifindex int) error {
	return d.detachExpress(hook{onContainer, ifindex})
}

// AttachUnderlay lets VXLAN packets that come in by an interface bypass the VXLAN
// device and the bridge. It is idempotent. An interface that is gone is not an
// error.
func (d *Datapath) AttachUnderlay(ifindex int) error {
	return d.attachExpress(hook{onUnderlay, ifindex}, d.c.fromUnderlay)
}

// DetachUnderlay undoes AttachUnderlay of this process or an earlier one.
func (d *Datapath) DetachUnderlay(ifindex int) error {
	return d.detachExpress(hook{onUnderlay, ifindex})
}

func (d *Datapath) attachExpress(h hook, prog *ebpf.Program) error {
	if prog == nil {
		return d.c.express
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.in(func() error { return d.attach(h, prog) })
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

func (d *Datapath) detachExpress(h hook) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.in(func() error { return d.detach(h) })
}

// Containers returns the interfaces of AttachContainer, of this process or an
// earlier one.
func (d *Datapath) Containers() []int { return d.attached(onContainer) }

// Underlays returns the interfaces of AttachUnderlay, of this process or an earlier
// one.
func (d *Datapath) Underlays() []int { return d.attached(onUnderlay) }

func (d *Datapath) attached(at place) (list []int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for h := range d.links {
		if h.at == at {
			list = append(list, h.ifindex)
		}
	}
	return list
}

// Properties by which filters of weft are recognised. The priority leaves space on both
// sides.
const (
	filterPriority = 6784
	guardPriority  = filterPriority - 1 // the spoof guard sees a frame first
	filterHandle   = 1
	filterPrefix   = "weft-"
)

func (h hook) priority() uint16 {
	if h.at == onGuard {
		return guardPriority
	}
	return filterPriority
}

func (h hook) parent() uint32 {
	if h.at == onPort {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

func clsact(ifindex int) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
}

func filter(h hook) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: h.ifindex, Parent: h.parent(), Priority: h.priority(), Handle: filterHandle, Protocol: unix.ETH_P_ALL,
		},
		Fd: -1, Name: filterPrefix + string(h.at), DirectAction: true,
	}
}

func attachClsact(h hook, prog *ebpf.Program) error {
	if err := netlink.QdiscAdd(clsact(h.ifindex)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add qdisc: %w", err)
	}
	f := filter(h)
	f.Fd = prog.FD()
	return netlink.FilterReplace(f)
}

// removeFilter removes the filter. The qdisc stays: to remove it, as to add it, the kernel stops the
// transmit queues of the interface for a moment (dev_deactivate in net/sched/sch_generic.c) and drops
// what it should send.
func removeFilter(h hook) (removed bool, err error) {
	err = netlink.FilterDel(filter(h))
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		return false, nil // no interface, no filter, no qdisc
	}
	if err != nil {
		return false, fmt.Errorf("remove filter from interface %d: %w", h.ifindex, err)
	}
	return true, nil
}

// detachClsact removes the filter, and the qdisc if it has no other.
func detachClsact(h hook) error {
	if removed, err := removeFilter(h); !removed {
		return err
	}
	l, err := netlink.LinkByIndex(h.ifindex)
	if err != nil {
		return nil
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		if left, err := netdev.Dump(func() ([]netlink.Filter, error) { return netlink.FilterList(l, parent) }); err != nil || len(left) > 0 {
			return nil
		}
	}
	// An ingress qdisc has the same handle. It is not weft's.
	all, err := netdev.Dump(func() ([]netlink.Qdisc, error) { return netlink.QdiscList(l) })
	if err != nil || !slices.ContainsFunc(all, func(q netlink.Qdisc) bool { return q.Type() == "clsact" }) {
		return nil
	}
	if err := netlink.QdiscDel(clsact(h.ifindex)); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove qdisc from interface %d: %w", h.ifindex, err)
	}
	return nil
}

// filters returns the hooks in the namespace that have filters of weft with that priority.
func filters(priority uint16) (list []hook, err error) {
	links, err := netdev.Dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			all, err := netdev.Dump(func() ([]netlink.Filter, error) { return netlink.FilterList(l, parent) })
			if err != nil {
				continue // the interface is gone
			}
			for _, f := range all {
				b, ok := f.(*netlink.BpfFilter)
				if !ok || b.Priority != priority {
					continue
				}
				if at, ours := strings.CutPrefix(b.Name, filterPrefix); ours {
					list = append(list, hook{place(at), l.Attrs().Index})
				}
			}
		}
	}
	return list, nil
}

// removeFilters removes all filters of weft with that priority from the namespace.
func removeFilters(priority uint16) error {
	list, err := filters(priority)
	for _, h := range list {
		err = errors.Join(err, detachClsact(h))
	}
	return err
}
