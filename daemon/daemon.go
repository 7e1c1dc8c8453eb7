package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/dns"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/hostfile"
	"github.com/weft-net/weft/internal/keeper"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/internal/version"
	"github.com/weft-net/weft/mesh/peer"
)

const (
	// sweepEvery is how often containers are compared with the kernel.
	sweepEvery = 10 * time.Second
	// restoreTimeout bounds claiming the addresses of running containers after a
	// start, which may need a ring first.
	restoreTimeout = 10 * time.Minute
	// leaveTimeout bounds leaving the mesh after a signal, and how much longer a Reset
	// may take that is at work then.
	leaveTimeout = 5 * time.Second
	// engineLeaveTimeout leaves time for the mesh if the container engine hangs.
	engineLeaveTimeout = leaveTimeout / 2
)

// Run runs a router until ctx ends, or the API tells it to stop or to reset; then it
// returns nil. An error says why the router could not start or go on. C must have
// passed Check.
func Run(ctx context.Context, c *Config) error { return run(ctx, c, newHost) }

func run(ctx context.Context, c *Config, assemble assemble) (err error) {
	if ctx.Err() != nil {
		return nil
	}
	collectSooner()
	own := *c
	c = &own
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if err := hostfile.Private(c.StateDir); err != nil {
		return fmt.Errorf("state folder: %w", err)
	}
	st, warnings, err := openState(c.path(storeFile))
	if errors.Is(err, store.ErrLocked) {
		return fmt.Errorf("a router with the state folder %s is already running: %w", c.StateDir, err)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	d := &daemon{config: c, log: c.Log, store: st, leaving: make(chan struct{}, 1)}
	d.resets, d.noReset = context.WithCancel(context.WithoutCancel(ctx))
	defer d.noReset()
	for _, text := range append(slices.Clone(c.Warnings), warnings...) {
		d.warn(text)
	}
	socket, err := api.ListenUnix(c.Socket)
	if err != nil {
		return err
	}
	defer socket.Close()
	defer func() {
		if d.keeper != nil {
			d.keeper.Close()
		}
		if d.guard != nil {
			d.guard.close()
		}
	}()
	if err := d.open(assemble); err != nil {
		return err
	}
	if err := d.serve(ctx, socket); err != nil {
		return err
	}
	if d.reset.Load() {
		return errors.Join(st.Close(), Erase(c))
	}
	return nil
}

// gcPercent is how much garbage may be there for each byte in use before it is collected, in
// percent. Go's default, 100, would double the memory that other peers can make a router use.
// A router in a quiet mesh collects garbage every few seconds in either case.
const gcPercent = 50

// collectSooner sets gcPercent, unless the user has chosen another value.
func collectSooner() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

// daemon is the running router. It implements api.Status and api.Lifecycle, and its
// parts implement the other interfaces of the API.
type daemon struct {
	// Constant after open.
	config      *Config
	log         *slog.Logger
	store       *store.Store
	name        peer.Name
	node        node
	names       *dns.Service
	addresses   addresses
	engine      engine
	targets     *targets
	namespaces  *namespaces
	docker      *dockerContainers
	exposures   *exposures
	external    *externalNames
	limits      *limits
	leases      *leases
	kernelState kernelState // at the start
	otherPorts  *otherPorts
	keeper      *keeper.Keeper
	guard       *spoofGuard
	announcer   *announcer
	bindings    *ownBindings
	containers  *containers
	warnings    []string
	end         context.CancelFunc // ends serve, which sets it before it serves

	leaving chan struct{}   // full while Stop or Reset is at work, and once one has succeeded
	resets  context.Context // ends when a Reset must give up
	noReset context.CancelFunc

	gate  gate // closed while leaving is full
	ready atomic.Bool
	reset atomic.Bool // Reset succeeded
}

// warn writes a line to the log and to every report.
func (d *daemon) warn(text string) {
	d.log.Warn("the router runs with a restriction", "warning", text)
	d.warnings = append(d.warnings, text)
}

// open makes the bridge and the parts, and notes that the router runs.
func (d *daemon) open(assemble assemble) error {
	if err := d.checkRoutes(); err != nil {
		return err
	}
	id, err := loadIdentity(d.config.path(identityFile), rand.Reader)
	if err != nil {
		return err
	}
	if n := d.config.Name; !n.IsZero() && n != id.Name {
		if err := n.CheckOverride(); err != nil {
			return fmt.Errorf("--name: %w", err)
		}
		id.Name = n
	}
	d.name = id.Name
	d.announcer, d.bindings = newAnnouncer(d.config.Bridge, d.log), newOwnBindings(d.config.Bridge, d.log)
	sees := func(v *netdev.View) {
		d.announcer.saw(v)
		d.bindings.saw(v)
	}
	d.guard = openSpoofGuard(d.config.pinDir(), d.log.With("part", "spoofguard"))
	d.bindings.guarded = d.guard.off == nil
	if d.keeper, err = openKeeper(d.config, d.bridge(id.Name), d.guard, sees); err != nil {
		return err
	}
	if d.kernelState, err = readKernelState(d.config.Bridge); err != nil {
		return err
	}
	d.config.kernelState, d.config.guard = d.kernelState, d.guard.kernel
	if err := d.guard.adopt(); err != nil {
		return err
	}
	list, crashed, err := startTargets(d.store, d.config.Peers, d.config.Resume)
	if err != nil {
		return err
	}
	if crashed {
		d.log.Info("the last run did not end by a stop; going on with its targets")
	}
	// The first ring waits for the targets of the last run too: with fewer, a router
	// that starts again before there is a ring would make one of its own.
	d.config.Peers, d.config.goesOn = list, crashed || d.config.Resume
	p, err := assemble(d.config, id, d.store, d.keeper)
	if err != nil {
		return err
	}
	if err := d.connect(p, list); err != nil {
		p.node.Close()
		return err
	}
	return nil
}

// bridge returns the desired state of the bridge. A peer's name is a MAC address that no
// other host's bridge has.
func (d *daemon) bridge(self peer.Name) netdev.Bridge {
	c := d.config
	return netdev.Bridge{Name: c.Bridge, MAC: net.HardwareAddr(self[:]), MTU: c.MTU, Sysctls: c.Sysctls, Filtered: c.Filtered}
}

// checkRoutes refuses the default range if routes of the host hide addresses of it. If the user
// chose the range, or a router ran here before, so that containers may have addresses, it only
// warns.
func (d *daemon) checkRoutes() error {
	_, err := os.Stat(d.config.path(ipamFile))
	before := err == nil
	for _, r := range []struct {
		flag  string
		value netip.Prefix
		given bool
	}{{"--ipalloc-range", d.config.Range, d.config.RangeGiven}, {"--ipalloc-range6", d.config.Range6, true}} {
		if !r.value.IsValid() {
			continue
		}
		routes, err := netdev.Overlapping(r.value, d.config.Bridge)
		if err != nil {
			return err
		}
		for _, route := range routes {
			text := routeWarning(r.flag, r.value, route)
			if text == "" {
				continue
			}
			if route.Hides(r.value) && !r.given && !before {
				return errors.New(text)
			}
			d.warn(text)
			break
		}
	}
	return nil
}

// routeWarning says what is wrong with a route that has addresses of a range, "" if nothing is.
func routeWarning(flag string, r netip.Prefix, route netdev.Route) string {
	switch {
	case route.Hides(r):
		return fmt.Sprintf("the route %s of this host hides addresses of the range %s from it; choose another range with %[3]s, or go on with %[3]s=%[2]s", route, r, flag)
	case route.OnLink:
		return fmt.Sprintf("the addresses of the range %s are part of the network %s of this host; if hosts there use some, choose another range with %s", r, route, flag)
	}
	return ""
}

// connect makes the daemon's own parts on top of p, and starts the record of this run.
func (d *daemon) connect(p *parts, targetList []string) (err error) {
	c := d.config
	d.node, d.names, d.addresses = p.node, p.names, p.addresses
	ac := attachConfig{store: d.store, addresses: p.addresses, names: p.names, bridge: c.Bridge, mtu: c.MTU, sysctls: c.Sysctls, keeper: d.keeper, guard: d.guard, log: d.log}
	d.namespaces, d.docker = newNamespaces(ac), newDockerContainers(ac)
	d.exposures = newExposures(exposeConfig{
		gate: &d.gate, store: d.store, addresses: p.addresses, names: p.names, bridge: c.Bridge, sysctls: c.Sysctls, keeper: d.keeper,
		keepClients: c.NoMasqLocal, changed: d.bindings.expose, log: d.log,
	})
	if err := d.exposures.keep(d.bridge(d.name)); err != nil {
		return err
	}
	firewall := hostFirewall{c.Bridge, c.ranges(), func() bool { return len(*d.exposures.wanted.Load()) > 0 }}
	if err := firewall.keep(d.keeper); err != nil {
		return err
	}
	d.leases = newLeases(leaseConfig{
		gate: &d.gate, kernel: d.keeper, addresses: p.addresses, stateDir: c.StateDir, bridge: c.Bridge, mtu: c.MTU, sysctls: c.Sysctls, log: d.log,
	}, d.store)
	d.otherPorts = &otherPorts{addresses: p.addresses, log: d.log, gone: make(map[string]time.Time)}
	if boot := currentBoot(); len(boot) > 0 {
		alive := d.kernelState.owners()
		if err := newBoot(d.store, boot, func() error { return d.leases.freeAll(alive) }); err != nil {
			return err
		}
	}
	if err := d.adopt(d.kernelState); err != nil {
		return err
	}
	d.leases.forgetUnused()
	if !c.DNS.Off {
		d.namespaces.restoreNames()
		d.docker.restoreNames()
		d.exposures.restoreNames()
	}
	// The mesh learns the bindings together with this router.
	v, err := netdev.ReadView()
	if err != nil {
		return err
	}
	d.bindings.announce = p.bind
	d.bindings.saw(v)
	d.bindings.update()
	if d.engine, err = p.newEngine(c.Docker, d.docker, p.names); err != nil {
		return err
	}
	d.containers = &containers{gate: &d.gate, namespaces: d.namespaces, docker: d.docker, engine: d.engine, exposures: d.exposures, leases: d.leases, kernel: d.keeper, guard: d.guard}
	d.limits = newLimits(c.Sysctls, c.Bridge)
	d.external = newExternalNames(d.store, p.names, d.containers.addrs, d.log)
	if !c.DNS.Off {
		d.external.restoreNames()
	}
	if err := d.store.Apply([]store.Write{{Bucket: bucketDaemon, Key: []byte(keyRunning), Value: []byte{1}}}); err != nil {
		return fmt.Errorf("note that the router runs: %w", err)
	}
	d.targets = &targets{store: d.store, set: d.node.SetTargets}
	if err := d.targets.replace(targetList); err != nil {
		return err
	}
	if len(c.Passwords) == 0 {
		d.log.Warn("no password is set: every host that reaches this one can join the mesh")
	}
	return nil
}

// serve runs everything until the end, and returns nil if a stop was asked for.
func (d *daemon) serve(ctx context.Context, socket net.Listener) error {
	var status net.Listener
	if d.config.StatusAddr != "" {
		var err error
		if status, err = net.Listen("tcp", d.config.StatusAddr); err != nil {
			d.node.Close()
			return fmt.Errorf("listen for status and metrics: %w", err)
		}
	}
	// The work goes on after ctx has ended, until the router has left the mesh.
	working, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	d.end = end
	g, working := errgroup.WithContext(working)
	d.engine.start(working, g)
	reports := api.NewReports(d, metricsHandler(d.Report, d.names.CountRefused))
	if status != nil {
		h := api.Handler(reports.ReadOnly())
		g.Go(func() error { return api.ServeStatus(working, status, h, d.log, d.config.StatusHosts) })
	}
	g.Go(func() error { return api.Serve(working, socket, d.handler(reports), d.log) })
	g.Go(func() error { return d.node.Run(working) })
	g.Go(func() error { d.restore(working); return nil })
	g.Go(func() error { d.sweep(working); return nil })
	g.Go(func() error { d.keeper.Run(working); return nil })
	g.Go(func() error { d.announcer.run(working); return nil })
	g.Go(func() error { d.bindings.run(working); return nil })
	g.Go(func() error { d.guard.run(working); return nil })
	g.Go(func() error { d.watch(working); return nil })
	g.Go(func() error {
		select {
		case <-ctx.Done():
			d.stopBySignal(working)
		case <-working.Done():
		}
		return nil
	})
	d.log.Info("ready", "name", d.name, "nickname", d.config.Mesh.Nickname, "version", version.String(), "socket", d.config.Socket)
	d.ready.Store(true)
	if err := notifyReady(); err != nil {
		d.log.Warn("the service manager does not know that the router is ready", "err", err)
	}
	return g.Wait()
}

// handler serves the whole control API.
func (d *daemon) handler(reports *api.Reports) http.Handler {
	return api.Handler(
		reports.Control(),
		api.ContainerRoutes(d.containers),
		api.ExposureRoutes(d.exposures),
		api.LeaseRoutes(d.leases),
		api.GuardRoutes(d.guard),
		api.NameRoutes(&nameRequests{
			off: d.config.DNS.Off, dns: d.names, engine: d.engine, namespaces: d.namespaces, external: d.external, attached: d.containers.addrs,
		}),
		api.PeerRoutes(&peerRequests{node: d.node, targets: d.targets, addresses: d.addresses}),
		api.PasswordRoutes(d.node),
		api.LifecycleRoutes(d),
	)
}

func (d *daemon) restore(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, restoreTimeout)
	defer cancel()
	d.docker.restore(ctx)
	d.namespaces.restore(ctx)
	d.exposures.restore(ctx)
}

// watch makes names follow the changes of interfaces and addresses at once. If the
// kernel does not report them, names follow a little later, by sweep.
func (d *daemon) watch(ctx context.Context) {
	w, err := netdev.NewWatch()
	if err == nil {
		defer w.Close()
		err = w.Run(ctx, func() {
			d.names.NetworkChanged()
			now := time.Now()
			d.docker.removeNamesOfGone(now)
			d.namespaces.removeNamesOfGone(now)
			d.engine.interfacesChanged()
		})
	}
	if err != nil {
		d.log.Warn("changes of interfaces are noticed late", "err", err)
	}
}

func (d *daemon) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			d.limits.warnings(now) // so that it knows when a table was full
			d.docker.sweep(now)
			d.namespaces.sweep(now)
			d.leases.sweep(now)
			d.otherPorts.sweep(now)
		}
	}
}

// isReady reports whether the router has started and is not about to stop.
func (d *daemon) isReady() bool { return d.ready.Load() && !d.gate.closed.Load() }

// Ready implements api.Status.
func (d *daemon) Ready(context.Context) api.Ready {
	return api.Ready{Ready: d.isReady(), PID: os.Getpid(), Version: version.String(), Name: d.name.String()}
}

// Report implements api.Status.
func (d *daemon) Report(ctx context.Context, lists api.Lists) (*api.Report, error) {
	r := &api.Report{
		Ready:       d.isReady(),
		Version:     version.String(),
		Attachments: d.containers.list(),
		Warnings:    append([]string{}, d.warnings...),
	}
	if err := d.node.Report(ctx, r, lists); err != nil {
		return nil, err
	}
	r.Router.Targets = d.targets.get()
	d.engine.report(r)
	if len(d.config.Passwords) == 0 {
		r.Warnings = append(r.Warnings, "no password is set: every host that reaches this one can join the mesh (--password)")
	}
	r.Warnings = append(r.Warnings, d.limits.warnings(time.Now())...)
	r.Warnings = append(r.Warnings, diskWarnings(d.config.StateDir)...)
	reportKernel(r, d.keeper, time.Now())
	d.guard.report(r, time.Now())
	d.guard.mark(r.Attachments)
	return r, nil
}

// Stop implements api.Lifecycle. Containers stay attached. A stop that fails ends
// the router too: the user wants it to end, and peers find out by themselves.
func (d *daemon) Stop(ctx context.Context) error {
	select {
	case d.leaving <- struct{}{}:
		return d.stop(ctx)
	default:
		return errLeaving
	}
}

// stop does the work of Stop. The caller has filled leaving.
func (d *daemon) stop(ctx context.Context) error {
	d.gate.closed.Store(true)
	d.log.Info("stopping")
	d.engine.leave(ctx)
	defer d.end()
	return d.noteStopped()
}

// Reset implements api.Lifecycle. If the addresses cannot be handed over, the router
// goes on, with its networks in the engine: the addresses would be lost with the
// state, so the user must decide.
func (d *daemon) Reset(ctx context.Context) error {
	select {
	case d.leaving <- struct{}{}:
	default:
		return errLeaving
	}
	d.gate.closed.Store(true)
	d.log.Info("stopping to reset this host")
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.resets, cancel)()
	err := d.node.HandOver(ctx)
	if err == nil {
		err = d.noteStopped()
	}
	if err != nil {
		d.gate.closed.Store(false)
		<-d.leaving
		return err
	}
	d.engine.leave(ctx)
	d.reset.Store(true)
	d.end()
	return nil
}

// noteStopped notes that this run ends by a stop, and not by a crash.
func (d *daemon) noteStopped() error {
	return d.store.Apply([]store.Write{{Bucket: bucketDaemon, Key: []byte(keyRunning)}})
}

// stopBySignal stops the router. A Stop or Reset that is at work ends it too, unless it
// is a Reset that fails, or is not done within leaveTimeout. Working is the context of
// serve.
func (d *daemon) stopBySignal(working context.Context) {
	timeout := time.AfterFunc(leaveTimeout, d.noReset)
	defer timeout.Stop()
	select {
	case d.leaving <- struct{}{}:
	case <-working.Done():
		return
	}
	ctx, cancel := context.WithTimeout(working, leaveTimeout)
	defer cancel()
	if err := d.stop(ctx); err != nil {
		d.log.Warn("the router did not leave the mesh properly", "err", err)
	}
}
