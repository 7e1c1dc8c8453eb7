package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/dns"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/internal/version"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/fastpath/plan"
	"github.com/weft-net/weft/router/wireguard"
)

const (
	// sweepEvery is how often containers and rules are compared with the
	// kernel.
	sweepEvery = 10 * time.Second
	// restoreTimeout is how long the addresses of running containers are
	// claimed again after a start, which may need a ring first.
	restoreTimeout = 10 * time.Minute
	// leaveTimeout bounds taking leave after a signal.
	leaveTimeout = 5 * time.Second
)

// Assemble makes the mesh, the switch and the allocators of one host. The
// bridge exists and the process holds the lock on the state folder.
type Assemble func(c *Config, id *peer.Identity, st *store.Store, log *slog.Logger) (*Parts, error)

// Run is a router from its start to its end: until it is told to stop or reset
// over the API, or ctx ends, which is a stop.
func Run(ctx context.Context, c *Config, assemble Assemble, log *slog.Logger) (err error) {
	if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
		return fmt.Errorf("make the state folder: %w", err)
	}
	st, aside, err := store.Open(c.path(storeFile))
	if errors.Is(err, store.ErrLocked) {
		return fmt.Errorf("a router with the state folder %s runs already: %w", c.StateDir, err)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	d := &daemon{config: c, log: log, store: st}
	if aside != "" {
		d.warn("the state file was damaged; it was set aside as " + aside + " and what it held comes back from the peers")
	}
	socket, err := api.ListenUnix(c.Socket)
	if err != nil {
		return err
	}
	defer socket.Close()
	if err := d.checkRange(); err != nil {
		return err
	}
	id, err := d.identity()
	if err != nil {
		return err
	}
	// A peer's name is a MAC address that no other host's bridge has.
	if err := netdev.EnsureBridge(c.Bridge, net.HardwareAddr(id.Name[:]), c.MTU); err != nil {
		return err
	}
	targets, err := d.startTargets()
	if err != nil {
		return err
	}
	// Who is waited for with the first ring are those of the last run too: with
	// fewer, a router that starts again before there is one would make its own.
	started := *c
	started.Peers = targets
	parts, err := assemble(&started, id, st, log)
	if err != nil {
		return err
	}
	if err := d.begin(id.Name, parts, targets); err != nil {
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

// daemon implements api.Backend.
type daemon struct {
	// Constant after begin.
	config      *Config
	log         *slog.Logger
	store       *store.Store
	name        peer.Name
	node        Node
	ranges      ranges
	targets     *targets
	attachments *attachments
	exposures   *exposures
	externs     *externs
	leases      *leases
	names       *dns.Service
	engine      *engine // nil: without Docker
	warnings    []string
	end         context.CancelFunc // ends serve; set by it before it serves

	ready   atomic.Bool
	leaving atomic.Bool // Stop or Reset was called, and only one may be
	reset   atomic.Bool // Reset succeeded
}

// warn puts a line into the log and into every report.
func (d *daemon) warn(text string) {
	d.log.Warn("not as it should be", "what", text)
	d.warnings = append(d.warnings, text)
}

// checkRange refuses the default range where the host's own routes have
// addresses of it, and only warns if the user chose the range.
func (d *daemon) checkRange() error {
	ours := []string{d.config.Bridge}
	for _, p := range []struct {
		flag  string
		given bool
	}{{"--ipalloc-range", d.config.RangeGiven}, {"--ipalloc-range6", true}} {
		r := d.config.Range
		if p.flag == "--ipalloc-range6" {
			r = d.config.Range6
		}
		if !r.IsValid() {
			continue
		}
		route, err := netdev.Overlap(r, ours...)
		if err != nil {
			return err
		}
		if route == nil {
			continue
		}
		text := fmt.Sprintf("the address range %s overlaps the route %s of this host; choose another with %s", r, route, p.flag)
		if !p.given {
			return errors.New(text)
		}
		d.warn(text)
	}
	return nil
}

func (d *daemon) identity() (*peer.Identity, error) {
	id, err := loadIdentity(d.config.path(identityFile), rand.Reader)
	if err != nil {
		return nil, err
	}
	if !d.config.Name.IsZero() {
		id.Name = d.config.Name
	}
	return id, nil
}

func (d *daemon) startTargets() ([]string, error) {
	list, crashed, err := startTargets(d.store, d.config.Peers, d.config.Resume)
	if crashed {
		d.log.Info("the last run did not end by a stop; going on where it was")
	}
	return list, err
}

// begin takes the parts over and starts the record of this run.
func (d *daemon) begin(name peer.Name, parts *Parts, targetList []string) error {
	d.name, d.node, d.ranges = name, parts.Node, parts.Ranges
	d.names = parts.Names
	d.attachments = newAttachments(d.store, d.ranges, d.names, d.config.Bridge, d.config.MTU, d.log)
	d.exposures = newExposures(d.store, d.ranges, d.names, d.config.Bridge, d.log)
	d.exposures.keepClients = d.config.NoMasqLocal
	d.externs = newExterns(d.store, d.names, d.log)
	d.leases = &leases{addresses: d.ranges, stateDir: d.config.StateDir, log: d.log}
	if boot := currentBoot(); len(boot) > 0 {
		if err := newBoot(d.store, boot, d.leases.freeAll); err != nil {
			return err
		}
	}
	if !d.config.DNS.Off {
		d.attachments.restoreNames()
		d.exposures.restoreNames()
		d.externs.restoreNames()
	}
	if d.config.DockerHost != "" {
		log := d.log.With("part", "docker")
		var ds *drivers
		if d.config.PluginSocket != "" {
			ds = newDrivers(d, log)
		}
		var err error
		if d.engine, err = newEngine(d, ds, log); err != nil {
			return err
		}
	}
	if err := d.store.Apply([]store.Write{{Bucket: bucketDaemon, Key: []byte(keyRunning), Value: []byte{1}}}); err != nil {
		return fmt.Errorf("note that the router runs: %w", err)
	}
	d.targets = &targets{store: d.store, set: d.node.SetTargets}
	if err := d.targets.add(targetList, true); err != nil {
		return err
	}
	if len(d.config.Passwords) == 0 {
		d.log.Warn("no password is set: whoever reaches this host can join the mesh")
	}
	return nil
}

// serve runs everything until the end, and returns nil if that was asked for.
func (d *daemon) serve(ctx context.Context, socket net.Listener) error {
	// The work goes on after ctx has ended, until leave is taken.
	working, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	d.end = end
	g, working := errgroup.WithContext(working)
	d.serveProxy(working, g)
	metrics := metricsHandler(func() *api.Report { return d.report() })
	var status net.Listener
	if d.config.StatusAddr != "" {
		var err error
		if status, err = net.Listen("tcp", d.config.StatusAddr); err != nil {
			return fmt.Errorf("listen for status and metrics: %w", err)
		}
		g.Go(func() error { return api.Serve(working, status, api.Handler(api.StatusRoutes(d, metrics)), d.log) })
	}
	g.Go(func() error { return api.Serve(working, socket, d.handler(metrics), d.log) })
	g.Go(func() error { return d.node.Run(working) })
	g.Go(func() error {
		restore, cancel := context.WithTimeout(working, restoreTimeout)
		defer cancel()
		d.attachments.restore(restore)
		d.exposures.restore(restore)
		return nil
	})
	g.Go(func() error { d.sweep(working); return nil })
	g.Go(func() error { d.watch(working); return nil })
	if d.engine != nil {
		g.Go(func() error { d.engine.run(working); return nil })
	}
	if d.engine != nil && d.engine.drivers != nil {
		g.Go(func() error {
			if err := d.engine.drivers.serve(working); err != nil {
				d.log.Warn("docker has no driver weft", "error", err)
			}
			return nil
		})
	}
	stop := context.AfterFunc(ctx, func() {
		leave, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
		defer cancel()
		if err := d.Stop(leave); err != nil {
			d.log.Warn("took no proper leave of the mesh", "error", err)
		}
		end()
	})
	defer stop()
	d.log.Info("ready", "name", d.name, "nickname", d.config.NickName, "version", version.String(), "socket", d.config.Socket)
	d.ready.Store(true)
	if err := notifyReady(); err != nil {
		d.log.Warn("the service manager does not know that the router is ready", "err", err)
	}
	return g.Wait()
}

// handler serves the whole control API.
func (d *daemon) handler(metrics http.Handler) http.Handler {
	return api.Handler(api.StatusRoutes(d, metrics), api.ContainerRoutes(d), api.ExposureRoutes(d), api.LeaseRoutes(d), api.NameRoutes(d),
		api.PeerRoutes(d), api.LifecycleRoutes(d))
}

// watch has names follow what happens to interfaces and addresses at once. Where
// the kernel does not tell, they do so a little later.
func (d *daemon) watch(ctx context.Context) {
	w, err := netdev.NewWatch()
	if err == nil {
		defer w.Close()
		err = w.Run(ctx, func() {
			d.names.NetworkChanged()
			d.attachments.bury(time.Now())
			if d.engine != nil {
				d.engine.bury()
			}
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
			d.attachments.sweep(now)
			d.exposures.reconcile()
			d.leases.sweep()
		}
	}
}

// Erase removes everything that a router that does not run has left on the
// host: its interfaces, its rules, its state and its socket.
func Erase(c *Config) error {
	errs := []error{
		kernel.Remove(kernel.Options{PinDir: c.pinDir(), Port: netdev.PortName, PortPeer: netdev.PortPeerName, VXLAN: netdev.VXLANName}),
		wireguard.Remove(wireguard.Config{Name: netdev.TunnelName, Inside: plan.TunnelPrefix}),
		netdev.DeleteAll(c.Bridge, netdev.TAPName),
		netdev.UnpassGuard(context.Background(), c.Bridge),
	}
	var files []string
	for _, f := range []string{storeFile, ipamFile, ipam6File} {
		found, err := filepath.Glob(c.path(f) + "*") // those set aside too
		if err != nil {
			return fmt.Errorf("remove the state: %w", err)
		}
		files = append(files, found...)
	}
	for _, s := range append([]string{"unix://" + c.PluginSocket}, c.ProxyListen...) {
		// What a router that was killed left: Docker would wait for it.
		path, unix := strings.CutPrefix(s, "unix://")
		if info, err := os.Lstat(path); unix && err == nil && info.Mode().Type() == os.ModeSocket {
			files = append(files, path)
		}
	}
	gone, err := filepath.Glob(filepath.Join(api.GoneFolder(c.StateDir), "*"))
	if err != nil {
		return fmt.Errorf("remove the state: %w", err)
	}
	files = append(files, append(gone, api.GoneFolder(c.StateDir))...)
	for _, f := range append(files, c.path(identityFile), c.path(LogFile), c.path(LaunchFile), c.Socket) {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove the state: %w", err))
		}
	}
	// Folders that hold something of somebody else's stay.
	for _, folder := range []string{c.StateDir, filepath.Dir(c.Socket)} {
		if entries, err := os.ReadDir(folder); err == nil && len(entries) == 0 {
			errs = append(errs, os.Remove(folder))
		}
	}
	return errors.Join(errs...)
}

// Exists tells whether a router has left state on the host.
func Exists(c *Config) bool {
	return slices.ContainsFunc([]string{storeFile, identityFile}, func(f string) bool {
		_, err := os.Lstat(c.path(f))
		return err == nil
	})
}
