package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/client"

	"github.com/weft-net/weft/dns"
	"github.com/weft-net/weft/docker"
	"github.com/weft-net/weft/docker/hosts"
	"github.com/weft-net/weft/docker/plugin"
	"github.com/weft-net/weft/docker/proxy"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
)

// engine is the daemon's side of Docker: it keeps attached containers attached
// over their restarts, and frees what those have that are gone. It implements
// docker.Observer.
type engine struct {
	client      *docker.Client
	watcher     *docker.Watcher
	attachments *attachments
	drivers     *drivers // nil: there are none
	names       *dns.Service
	given       *givenNames
	log         *slog.Logger
	// Constant once run is called. proxies are where the proxy is, share those of
	// its sockets that users of Docker's may open.
	proxy          *proxy.Proxy // nil: there is none
	proxies, share []string

	working sync.WaitGroup // goroutines that rejoin containers

	guarding sync.Mutex // held while the firewall is looked at, so that no rule is made twice

	// naming is held while names of a container are worked out and registered, so
	// that what is older does not replace what is newer. It comes before mu.
	naming sync.Mutex

	mu sync.Mutex
	// running are the containers that run, as last told.
	running map[string]*docker.Container
	// away are those of them that have to be joined again.
	away map[string]bool
	// blockers are chains of the firewall that drop bridged frames.
	blockers []string
}

func newEngine(d *daemon, ds *drivers, log *slog.Logger) (*engine, error) {
	c, err := docker.NewClient(d.config.DockerHost)
	if err != nil {
		return nil, err
	}
	e := &engine{
		client: c, attachments: d.attachments, drivers: ds, names: d.names, given: newGivenNames(d.store, log), log: log,
		running: make(map[string]*docker.Container), away: make(map[string]bool),
	}
	e.watcher = docker.NewWatcher(c, e, log)
	return e, nil
}

// run follows Docker until ctx ends.
func (e *engine) run(ctx context.Context) {
	e.working.Go(func() { e.tend(ctx) })
	e.watcher.Run(ctx)
	if e.drivers != nil {
		e.drivers.Close() // which ends what some of the working wait for
	}
	e.working.Wait()
}

// guardEvery is how often Docker's guard is looked at, besides when an engine
// starts: others flush it.
const guardEvery = 30 * time.Second

// passGuard has Docker's firewall let the bridge's own frames pass.
func (e *engine) passGuard(ctx context.Context) {
	e.guarding.Lock()
	defer e.guarding.Unlock()
	changed, err := netdev.PassGuard(ctx, e.attachments.bridge)
	if len(changed) > 0 {
		e.log.Info("docker's firewall lets bridged frames pass now", "rules", changed)
	}
	if err != nil && ctx.Err() == nil {
		e.log.Warn("docker's firewall may drop bridged frames", "error", err)
	}
	blockers, err := netdev.BridgeBlockers(ctx, e.attachments.bridge)
	if err != nil {
		e.log.Debug("the forward chains of this host could not be read", "error", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.blockers = blockers
}

// warnings are what a user should know of.
func (e *engine) warnings() (list []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	bridge := e.attachments.bridge
	for _, chain := range e.blockers {
		list = append(list, fmt.Sprintf("the firewall's %s drops what containers of this host send over bridge %s, unless a rule there accepts it: %s", chain, bridge, netdev.OpenBridge(bridge)))
	}
	return list
}

// tend does what has to be done every now and then, until ctx ends.
func (e *engine) tend(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	guarded := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			e.sweep(ctx, now)
			if now.Sub(guarded) >= guardEvery {
				e.passGuard(ctx)
				guarded = now
			}
		}
	}
}

// Connected implements docker.Observer.
func (e *engine) Connected(ctx context.Context, c *client.Client) {
	e.working.Go(func() { e.passGuard(ctx) })
	if e.proxy != nil {
		e.proxy.Reset()
	}
	for _, path := range e.share {
		// The engine may have made its socket after the proxy made this one.
		if err := proxy.Share(path, e.client.Host()); err != nil {
			e.log.Warn("users of docker can not open the proxy's socket", "error", err)
		}
	}
	if e.drivers == nil {
		return
	}
	e.working.Go(func() {
		asking, cancel := context.WithTimeout(ctx, networkTimeout)
		defer cancel()
		if err := e.drivers.adopt(asking, c); err != nil {
			e.log.Warn("networks of docker's are not on record", "error", err)
		}
		e.drivers.keepNetwork(ctx, c)
	})
}

// Running implements docker.Observer.
func (e *engine) Running(ctx context.Context, c *docker.Container) {
	e.mu.Lock()
	e.running[c.ID] = c
	_, attached := e.attachments.get(c.ID)
	if attached {
		e.away[c.ID] = true
	}
	e.mu.Unlock()
	if attached {
		e.working.Go(func() { e.rejoin(ctx, c) })
	}
	e.working.Go(func() { e.welcome(ctx, c) })
}

// welcome takes over what a container has on weft's networks.
func (e *engine) welcome(ctx context.Context, c *docker.Container) {
	if e.drivers != nil {
		e.drivers.adoptEndpoints(ctx, c)
	}
	e.introduce(c)
}

// Changed implements docker.Observer.
func (e *engine) Changed(ctx context.Context, c *docker.Container) {
	e.mu.Lock()
	e.running[c.ID] = c
	e.mu.Unlock()
	e.working.Go(func() { e.welcome(ctx, c) })
}

// rejoin gives a container back what it had. What fails is tried again by sweep
// for as long as it runs.
func (e *engine) rejoin(ctx context.Context, c *docker.Container) {
	ctx, cancel := context.WithTimeout(ctx, allocateTimeout)
	defer cancel()
	a, err := e.attachments.rejoin(ctx, c)
	if !e.runs(c) {
		return
	}
	if err != nil {
		e.log.Warn("a container that runs again could not be attached, will try again", "error", err)
		return
	}
	e.mu.Lock()
	delete(e.away, c.ID)
	e.mu.Unlock()
	e.rewriteHosts(c, a)
	e.introduce(c)
}

// runs tells whether this run of a container goes on, as far as was told.
func (e *engine) runs(c *docker.Container) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.running[c.ID]
	return now != nil && now.Since == c.Since
}

// latest is what was told last of a container, c itself if that was nothing.
func (e *engine) latest(c *docker.Container) *docker.Container {
	e.mu.Lock()
	defer e.mu.Unlock()
	if now := e.running[c.ID]; now != nil {
		return now
	}
	return c
}

// sweep rejoins the containers for which that failed, and frees what those had
// that are gone.
func (e *engine) sweep(ctx context.Context, now time.Time) {
	e.bury() // where no interface told
	if e.drivers != nil {
		e.drivers.Sweep(now)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(e.away)) {
		if c := e.running[id]; c != nil {
			e.working.Go(func() { e.rejoin(ctx, c) })
		}
	}
}

// rewriteHosts makes an attached container known to itself.
func (e *engine) rewriteHosts(c *docker.Container, a attachment) {
	if a.Docker == nil || !a.Docker.RewriteHosts && len(a.Docker.AddHosts) == 0 {
		return
	}
	var own []netip.Addr
	if a.Docker.RewriteHosts {
		own = addrsOf(a.Addresses)
	}
	if err := hosts.Rewrite(c.HostsPath, c.Hostname, own, a.Docker.AddHosts); err != nil {
		e.log.Warn("the hosts file of a container is as it was", "container", c.Name, "error", err)
	}
}

// engineLeaveTimeout leaves time for the mesh when the engine hangs.
const engineLeaveTimeout = leaveTimeout / 2

// leave takes leave of the engine: the default network goes, unless it is used.
func (e *engine) leave(ctx context.Context) {
	if e.drivers == nil || e.watcher.State() != "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, engineLeaveTimeout)
	defer cancel()
	c, err := e.client.Open()
	if err == nil {
		err = e.drivers.dropNetworks(ctx, c)
		c.Close()
	}
	if err != nil {
		e.log.Warn("docker keeps something of weft", "error", err)
	}
}

// report is the state of Docker in words.
func (e *engine) report() *api.Docker {
	r := &api.Docker{Host: e.client.Host(), State: e.watcher.State()}
	e.mu.Lock()
	r.Containers = len(e.running)
	e.mu.Unlock()
	r.ProxyAddresses = e.proxies
	if e.drivers != nil {
		r.DriverName, r.DriverSocket = plugin.Name, e.drivers.socket
	}
	return r
}

// attached brings the names of a container in line with its record, which the
// user has changed.
func (e *engine) attached(c *docker.Container) {
	c = e.latest(c)
	if a, known := e.attachments.get(c.ID); known {
		e.rewriteHosts(c, a)
	}
	e.naming.Lock()
	defer e.naming.Unlock()
	_ = e.setNames(c, e.given.get(c.ID)) // the log says why
}

// detached is attached for one from which addresses were taken: the names that it
// was given go with the last.
func (e *engine) detached(c *docker.Container) {
	if _, known := e.attachments.get(c.ID); !known && len(e.endpoints(e.latest(c))) == 0 {
		e.given.forget(c.ID)
	}
	e.attached(c)
}

// Stopped implements docker.Observer.
func (e *engine) Stopped(_ context.Context, id string) {
	e.drop(id)
	e.given.ended(id)
}

func (e *engine) drop(id string) {
	e.mu.Lock()
	delete(e.running, id)
	delete(e.away, id)
	e.mu.Unlock()
	e.naming.Lock()
	defer e.naming.Unlock()
	e.names.RemoveContainer(id)
}

// Gone implements docker.Observer.
func (e *engine) Gone(_ context.Context, id string) {
	e.drop(id)
	e.attachments.remove(id)
	e.given.forget(id)
}

// Listed implements docker.Observer.
func (e *engine) Listed(_ context.Context, exist []string) {
	e.attachments.keepOnly(exist)
	e.given.keepOnly(exist)
}

// find returns the place of a container that can be attached, or for detach was.
func (e *engine) find(ctx context.Context, ref string, toAttach bool) (place, error) {
	c, err := e.client.Find(ctx, ref)
	if err != nil {
		if !toAttach && !errors.Is(err, docker.ErrNotFound) {
			if p, ok := e.attachments.recorded(ref); ok {
				return p, nil
			}
		}
		return place{}, err
	}
	p := place{owner: c.ID, container: c}
	if c.Running {
		p.netns = c.Netns()
	}
	if !toAttach {
		return p, nil
	}
	switch {
	case c.NetworkMode == "host":
		return place{}, fmt.Errorf("attach container %s: it has the network of the host (--network host), which can not be attached; give the host an address with: weft expose", ref)
	case strings.HasPrefix(c.NetworkMode, "container:"):
		return place{}, fmt.Errorf("attach container %s: it has the network of another (--network %s); attach that one", ref, c.NetworkMode)
	case !c.Running:
		return place{}, fmt.Errorf("attach container %s: it does not run; start it first", ref)
	}
	return p, nil
}

// place finds the container that a request is about.
func (d *daemon) place(ctx context.Context, r api.AttachRequest, toAttach bool) (place, error) {
	switch {
	case r.Container == "":
		return placeOf(r.Netns)
	case r.Netns != "":
		return place{}, usage(fmt.Sprintf("container %s: named by a network namespace too, %s; give one", r.Container, r.Netns))
	case d.engine == nil:
		return place{}, unavailable(fmt.Sprintf("container %s: this router was launched without Docker; name it by --netns or --pid", r.Container))
	}
	for _, h := range r.AddHosts {
		if _, _, err := hosts.ParseEntry(h); err != nil {
			return place{}, usage(err.Error())
		}
	}
	return d.engine.find(ctx, r.Container, toAttach)
}
