package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/internal/version"
)

// allocateTimeout bounds how long a request waits for addresses. The error
// then says what it waited for.
const allocateTimeout = 60 * time.Second

var errLeaving = unavailable("the router is about to stop")

// Ready implements api.Backend.
func (d *daemon) Ready(context.Context) api.Ready {
	return api.Ready{
		Ready: d.ready.Load() && !d.leaving.Load(), PID: os.Getpid(),
		Version: version.String(), Name: d.name.String(),
	}
}

// Report implements api.Backend.
func (d *daemon) Report(context.Context) (*api.Report, error) { return d.report(), nil }

func (d *daemon) report() *api.Report {
	r := &api.Report{
		Ready:       d.ready.Load() && !d.leaving.Load(),
		Version:     version.String(),
		Attachments: d.listAttachments(),
		Warnings:    append([]string{}, d.warnings...),
	}
	d.node.Report(r)
	r.Router.Targets = d.targets.get()
	if d.engine != nil {
		r.Docker = d.engine.report()
		r.Warnings = append(r.Warnings, d.engine.warnings()...)
	}
	if len(d.config.Passwords) == 0 {
		r.Warnings = append(r.Warnings, "no password is set: whoever reaches this host can join the mesh (--password)")
	}
	if _, exposed := d.exposures.attachment(); exposed {
		chains, err := netdev.ForwardBlockers()
		if err != nil {
			d.log.Debug("the forward chains of this host could not be read", "error", err)
		}
		for _, chain := range chains {
			r.Warnings = append(r.Warnings, fmt.Sprintf("the firewall's %s drops forwarded packets, so other networks may not reach what is exposed; accept bridge %s there", chain, d.config.Bridge))
		}
	}
	return r
}

// Attachments implements api.Backend.
func (d *daemon) Attachments(context.Context) ([]api.Attachment, error) {
	return d.listAttachments(), nil
}

func (d *daemon) listAttachments() []api.Attachment {
	list := []api.Attachment{}
	if a, exposed := d.exposures.attachment(); exposed {
		list = append(list, a)
	}
	list = append(list, d.attachments.list()...)
	if d.engine != nil {
		list = append(list, d.engine.list()...)
	}
	return list
}

// Attach implements api.Backend.
func (d *daemon) Attach(ctx context.Context, r api.AttachRequest) ([]netip.Prefix, error) {
	if d.leaving.Load() {
		return nil, errLeaving
	}
	ctx, cancel := context.WithTimeout(ctx, allocateTimeout)
	defer cancel()
	p, err := d.place(ctx, r, true)
	if err != nil {
		return nil, err
	}
	if p.container != nil {
		return d.attachDockers(ctx, p, r)
	}
	ps, err := d.attachments.attach(ctx, p, r)
	if errors.Is(err, netdev.ErrHostNS) {
		return nil, usage(err.Error())
	}
	return ps, err
}

// attachDockers attaches a container of Docker's, whose names the engine's part
// keeps.
func (d *daemon) attachDockers(ctx context.Context, p place, r api.AttachRequest) ([]netip.Prefix, error) {
	fqdn, err := qualify(d.names, r.Hostname)
	if err != nil {
		return nil, err
	}
	r.Hostname = ""
	ps, err := d.attachments.attach(ctx, p, r)
	d.engine.attached(p.container)
	if _, gone := os.Stat(p.netns); err != nil && gone != nil {
		return nil, fmt.Errorf("attach %s: it ended meanwhile", p)
	}
	if err == nil && fqdn != "" {
		err = d.engine.addName(ctx, p.owner, fqdn, nil)
	}
	return ps, err
}

// Detach implements api.Backend.
func (d *daemon) Detach(ctx context.Context, r api.AttachRequest) ([]netip.Prefix, error) {
	p, err := d.place(ctx, r, false)
	if err != nil {
		return nil, err
	}
	ps, err := d.attachments.detach(p, r.Addresses)
	if p.container != nil {
		d.engine.detached(p.container)
	}
	return ps, err
}

// Expose implements api.Backend.
func (d *daemon) Expose(ctx context.Context, r api.ExposeRequest) ([]netip.Prefix, error) {
	if d.leaving.Load() {
		return nil, errLeaving
	}
	ctx, cancel := context.WithTimeout(ctx, allocateTimeout)
	defer cancel()
	return d.exposures.expose(ctx, r)
}

// Hide implements api.Backend.
func (d *daemon) Hide(_ context.Context, r api.ExposeRequest) ([]netip.Prefix, error) {
	return d.exposures.hide(r)
}

// Lease implements api.Backend.
func (d *daemon) Lease(ctx context.Context, r api.LeaseRequest) (api.LeaseReply, error) {
	if d.leaving.Load() {
		return api.LeaseReply{}, errLeaving
	}
	ctx, cancel := context.WithTimeout(ctx, allocateTimeout)
	defer cancel()
	got, err := d.leases.lease(ctx, r)
	return api.LeaseReply{Addresses: got, Bridge: d.config.Bridge, MTU: d.config.MTU}, err
}

// Release implements api.Backend.
func (d *daemon) Release(_ context.Context, r api.LeaseRequest) ([]netip.Prefix, error) {
	return d.leases.release(r.Owner)
}

// Leases implements api.Backend.
func (d *daemon) Leases(context.Context) ([]api.Lease, error) { return d.leases.list(), nil }

// Connect implements api.Backend.
func (d *daemon) Connect(_ context.Context, r api.PeersRequest) error {
	for _, p := range r.Peers {
		if err := api.CheckTarget(p); err != nil {
			return usage(err.Error())
		}
	}
	return d.targets.add(r.Peers, r.Replace)
}

// Forget implements api.Backend.
func (d *daemon) Forget(_ context.Context, r api.PeersRequest) error {
	return d.targets.remove(r.Peers)
}

// RemovePeers implements api.Backend.
func (d *daemon) RemovePeers(ctx context.Context, r api.PeersRequest) ([]api.Removed, error) {
	if len(d.ranges) == 0 {
		return nil, unavailable("take over a dead peer's addresses: this router was launched without a range of addresses")
	}
	return d.node.RemovePeers(ctx, r.Peers)
}

// Adopt implements api.Backend.
func (d *daemon) Adopt(_ context.Context, r api.AdoptRequest) error { return d.node.Adopt(r.Ring) }

// Prime implements api.Backend.
func (d *daemon) Prime(ctx context.Context) error {
	for _, u := range d.ranges {
		if err := u.Prime(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Stop implements api.Backend. Containers stay attached.
func (d *daemon) Stop(ctx context.Context) error { return d.leave(ctx, false) }

// Reset implements api.Backend.
func (d *daemon) Reset(ctx context.Context) error { return d.leave(ctx, true) }

// leave takes leave of the mesh once, and ends the run. A leave that fails
// ends it too: the user wants the router gone, and peers find out by
// themselves.
func (d *daemon) leave(ctx context.Context, reset bool) error {
	if d.leaving.Swap(true) {
		return errLeaving
	}
	d.log.Info("stopping", "reset", reset)
	if d.engine != nil {
		d.engine.leave(ctx)
	}
	err := d.node.Leave(ctx, reset)
	if err == nil || !reset {
		err = errors.Join(err, d.store.Apply([]store.Write{{Bucket: bucketDaemon, Key: []byte(keyRunning)}}))
	}
	if err != nil && reset {
		// What could not be handed over is lost with the state: the user has to
		// know, and to say --force.
		d.leaving.Store(false)
		return err
	}
	d.reset.Store(reset)
	d.end()
	return err
}
