package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/moby/client"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/weft-net/weft/dns"
	"github.com/weft-net/weft/docker"
	"github.com/weft-net/weft/docker/hosts"
	"github.com/weft-net/weft/docker/plugin"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/keeper"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/owned"
)

// dockerEngine follows Docker: it keeps attached containers attached over their
// restarts, and frees the addresses of removed containers. It implements engine and
// docker.Observer.
type dockerEngine struct {
	// Constant.
	client     *docker.Client
	watcher    *docker.Watcher
	containers *dockerContainers
	driver     driver
	proxy      engineProxy
	names      *dns.Service
	edits      *dockerNameEdits
	log        *slog.Logger

	working sync.WaitGroup // goroutines that attach containers again
	leaving atomic.Bool    // the router removes its networks
	remakes *rate.Limiter  // bounds how often a removed network is made again

	// naming is held while the names of a container are computed and registered, so
	// that an older state does not replace a newer one.
	// Lock order: naming, mu, and then the locks of attachments.
	naming sync.Mutex

	mu sync.Mutex
	// running are the running containers, as last reported.
	running map[string]*docker.Container
	// detached are those of them that must be attached again.
	detached map[string]bool
	// rejoining are the runs that a goroutine is attaching.
	rejoining map[containerRun]bool
}

// containerRun is one run of a container.
type containerRun struct{ id, since string }

var (
	_ engine          = (*dockerEngine)(nil)
	_ docker.Observer = (*dockerEngine)(nil)
)

// newDockerEngine is the newEngine of Run. It returns noEngine if c names no engine.
func newDockerEngine(c DockerConfig, containers *dockerContainers, names *dns.Service) (engine, error) {
	if c.Host == "" {
		return noEngine{}, nil
	}
	ac := containers.attachConfig
	ac.log = ac.log.With("part", "docker")
	dc, err := docker.NewClient(c.Host)
	if err != nil {
		return nil, err
	}
	e := &dockerEngine{
		remakes: rate.NewLimiter(rate.Every(networkRetry), 3),
		client:  dc, containers: containers, driver: noDriver{}, proxy: noProxy{}, names: names, edits: newDockerNameEdits(ac.store, ac.log), log: ac.log,
		running: make(map[string]*docker.Container), detached: make(map[string]bool), rejoining: make(map[containerRun]bool),
	}
	e.watcher = docker.NewWatcher(dc, e, ac.log)
	if c.Driver {
		d := newDockerDriver(ac, c.DriverSocket)
		e.driver = d
		if c.Proxy {
			e.proxy = newDockerProxy(c, d.subnet, names, containers.log.With("part", "proxy"))
		}
	}
	return e, nil
}

// start implements engine.
func (e *dockerEngine) start(ctx context.Context, g *errgroup.Group) {
	e.proxy.start(ctx, g)
	g.Go(func() error { e.follow(ctx); return nil })
	g.Go(func() error {
		if err := e.driver.serve(ctx); err != nil {
			e.log.Warn("docker has no driver weft", "err", err)
		}
		return nil
	})
}

// follow follows Docker until ctx ends.
func (e *dockerEngine) follow(ctx context.Context) {
	e.working.Go(func() { e.maintain(ctx) })
	e.watcher.Run(ctx)
	e.driver.close() // some of the working goroutines wait for it
	e.working.Wait()
}

// iptablesTimeout bounds a run of iptables, which waits for its lock.
const iptablesTimeout = 10 * time.Second

// keepRule makes Docker's firewall accept the frames of weft's bridge, until ctx ends. Docker
// and other programs remove the rule.
func (e *dockerEngine) keepRule(ctx context.Context) error {
	rule := netdev.DockerUserRule{Bridge: e.containers.bridge}
	return e.containers.keeper.Keep(keeper.Object{
		ID: dockerRule,
		Look: func(*netdev.View) (faults []string, err error) {
			err = untilEnd(ctx, func(ctx context.Context) error { faults, err = rule.Faults(ctx); return err })
			return faults, err
		},
		Make: func() error { return untilEnd(ctx, rule.Ensure) },
	})
}

// untilEnd calls f with a timeout. If ctx has ended, the object waits for the next engine.
func untilEnd(ctx context.Context, f func(context.Context) error) error {
	timeout, cancel := context.WithTimeout(ctx, iptablesTimeout)
	defer cancel()
	err := f(timeout)
	if ctx.Err() != nil {
		return owned.ErrWaits
	}
	return err
}

// dockerRule is the object of the rule in Docker's chain.
var dockerRule = owned.ID{Kind: owned.DockerRule, Name: "DOCKER-USER"}

// maintain does the periodic work until ctx ends.
func (e *dockerEngine) maintain(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			e.sweep(ctx, now)
		}
	}
}

// Connected implements docker.Observer.
func (e *dockerEngine) Connected(ctx context.Context, c *client.Client) {
	if err := e.keepRule(ctx); err != nil {
		e.log.Warn("docker's firewall may drop bridged frames", "err", err)
	}
	e.proxy.connected(e.client.Host())
	e.working.Go(func() { e.driver.connected(ctx, c) })
}

// NetworkRemoved implements docker.Observer.
func (e *dockerEngine) NetworkRemoved(ctx context.Context, c *client.Client, name string) {
	if name == plugin.Name && !e.leaving.Load() {
		e.log.Warn("other software removed docker's network weft, which is made again")
		e.working.Go(func() {
			if e.remakes.Wait(ctx) == nil {
				e.driver.connected(ctx, c)
			}
		})
	}
}

// Running implements docker.Observer.
func (e *dockerEngine) Running(ctx context.Context, c *docker.Container) {
	e.mu.Lock()
	e.running[c.ID] = c
	_, attached := e.containers.get(c.ID)
	if attached {
		e.detached[c.ID] = true
		e.startRejoin(ctx, c)
	}
	e.mu.Unlock()
	e.working.Go(func() { e.registerContainer(ctx, c) })
}

// registerContainer records the endpoints of a running container on weft's networks, and
// registers its names.
func (e *dockerEngine) registerContainer(ctx context.Context, c *docker.Container) {
	e.driver.adoptEndpoints(ctx, c)
	e.updateNames(c)
}

// Changed implements docker.Observer.
func (e *dockerEngine) Changed(ctx context.Context, c *docker.Container) {
	e.mu.Lock()
	e.running[c.ID] = c
	e.mu.Unlock()
	e.working.Go(func() { e.registerContainer(ctx, c) })
}

// startRejoin calls rejoin in a goroutine, unless one is at work for this run of the
// container. It is called with mu held.
func (e *dockerEngine) startRejoin(ctx context.Context, c *docker.Container) {
	r := containerRun{c.ID, c.Since}
	if e.rejoining[r] {
		return
	}
	e.rejoining[r] = true
	e.working.Go(func() {
		e.rejoin(ctx, c)
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.rejoining, r)
	})
}

// rejoin attaches a container again. If that fails, sweep tries again for as long as
// the container runs.
func (e *dockerEngine) rejoin(ctx context.Context, c *docker.Container) {
	ctx, cancel := context.WithTimeout(ctx, allocateTimeout)
	defer cancel()
	a, err := e.containers.rejoin(ctx, c)
	if !e.runs(c) {
		return
	}
	if err != nil {
		e.log.Warn("a restarted container could not be attached, will try again", "err", err)
		return
	}
	e.mu.Lock()
	delete(e.detached, c.ID)
	e.mu.Unlock()
	e.rewriteHosts(c, a)
	e.updateNames(c)
}

// runs reports whether this run of a container goes on, by the last report.
func (e *dockerEngine) runs(c *docker.Container) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.running[c.ID]
	return now != nil && now.Since == c.Since
}

// latest returns the container as last reported, c itself if it was not.
func (e *dockerEngine) latest(c *docker.Container) *docker.Container {
	e.mu.Lock()
	defer e.mu.Unlock()
	if now := e.running[c.ID]; now != nil {
		return now
	}
	return c
}

// sweep attaches the containers for which that failed, and frees the addresses of
// removed ones.
func (e *dockerEngine) sweep(ctx context.Context, now time.Time) {
	e.interfacesChanged() // in case that no event said so
	e.driver.sweep(now)
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(e.detached)) {
		if c := e.running[id]; c != nil {
			e.startRejoin(ctx, c)
		}
	}
}

// rewriteHosts writes the /etc/hosts of an attached container, if its record says
// so.
func (e *dockerEngine) rewriteHosts(c *docker.Container, a attachment) {
	if !a.Docker.RewriteHosts && len(a.Docker.AddHosts) == 0 {
		return
	}
	var own []netip.Addr
	if a.Docker.RewriteHosts {
		own = addrsOf(a.Addresses)
	}
	if err := hosts.Rewrite(c.HostsPath, c.Hostname, own, a.Docker.AddHosts); err != nil {
		e.log.Warn("the hosts file of a container could not be written", "container", c.Name, "err", err)
	}
}

// leave implements engine.
func (e *dockerEngine) leave(ctx context.Context) {
	e.leaving.Store(true)
	if e.watcher.State() != "" {
		return // Docker does not answer
	}
	ctx, cancel := context.WithTimeout(ctx, engineLeaveTimeout)
	defer cancel()
	if err := e.driver.leave(ctx, e.client); err != nil {
		e.log.Warn("cannot remove weft's networks from Docker", "err", err)
	}
}

// report implements engine.
func (e *dockerEngine) report(r *api.Report) {
	r.Docker = &api.Docker{Host: e.client.Host(), State: e.watcher.State(), ProxyAddresses: e.proxy.addrs()}
	e.driver.report(r.Docker)
	r.Warnings = append(r.Warnings, e.proxy.faults()...)
	e.mu.Lock()
	defer e.mu.Unlock()
	r.Docker.Containers = len(e.running)
}

// list implements engine.
func (e *dockerEngine) list() []api.Attachment {
	of := make(map[string]containerName)
	e.mu.Lock()
	for _, c := range e.running {
		for _, end := range c.Endpoints {
			of[end.ID] = containerName{c.ID, c.Name}
		}
	}
	e.mu.Unlock()
	return e.driver.list(of)
}

// attach implements engine. The names of the container are kept by the engine's
// part, not in its record.
func (e *dockerEngine) attach(ctx context.Context, r api.AttachRequest) ([]netip.Prefix, error) {
	for _, h := range r.AddHosts {
		if _, _, err := hosts.ParseEntry(h); err != nil {
			return nil, usage("%w", err)
		}
	}
	fqdn, err := qualify(e.names, r.Hostname)
	if err != nil {
		return nil, err
	}
	c, err := e.findToAttach(ctx, r.Container)
	if err != nil {
		return nil, err
	}
	r.Hostname = ""
	p := place{owner: c.ID, netns: c.Netns(), name: c.Name}
	ps, err := e.containers.attach(ctx, p, r)
	e.recordChanged(c)
	if _, gone := os.Stat(p.netns); err != nil && gone != nil {
		return nil, fmt.Errorf("attach %s: it ended meanwhile", p)
	}
	if err == nil && fqdn != "" {
		err = e.addName(ctx, c.ID, fqdn, nil)
	}
	return ps, err
}

// detach implements engine.
func (e *dockerEngine) detach(ctx context.Context, r api.AttachRequest) ([]netip.Prefix, error) {
	p, c, err := e.findRecorded(ctx, r.Container)
	if err != nil {
		return nil, err
	}
	ps, err := e.containers.detach(p, r.Addresses)
	if _, known := e.containers.get(c.ID); !known && len(e.driver.endpoints(e.latest(c))) == 0 {
		e.edits.forget(c.ID) // what users changed goes with the last address
	}
	e.recordChanged(c)
	return ps, err
}

// recordChanged brings the names and the hosts file of a container in line with its
// record, which a request has changed.
func (e *dockerEngine) recordChanged(c *docker.Container) {
	c = e.latest(c)
	if a, known := e.containers.get(c.ID); known {
		e.rewriteHosts(c, a)
	}
	e.naming.Lock()
	defer e.naming.Unlock()
	_ = e.setNames(c, e.edits.get(c.ID)) // the log says why
}

// Stopped implements docker.Observer.
func (e *dockerEngine) Stopped(_ context.Context, id string) {
	e.drop(id)
	e.edits.ended(id)
}

// drop forgets the run of a container, and removes its names.
func (e *dockerEngine) drop(id string) {
	e.mu.Lock()
	delete(e.running, id)
	delete(e.detached, id)
	e.mu.Unlock()
	e.naming.Lock()
	defer e.naming.Unlock()
	e.names.RemoveContainer(id)
}

// Gone implements docker.Observer.
func (e *dockerEngine) Gone(_ context.Context, id string) {
	e.drop(id)
	e.containers.remove(id)
	e.edits.forget(id)
}

// Listed implements docker.Observer.
func (e *dockerEngine) Listed(_ context.Context, exist []string) {
	e.containers.keepOnly(exist)
	e.edits.keepOnly(exist)
}

// findToAttach finds a container that can be attached.
func (e *dockerEngine) findToAttach(ctx context.Context, ref string) (*docker.Container, error) {
	c, err := e.client.Find(ctx, ref)
	switch {
	case err != nil:
		return nil, err
	case c.NetworkMode == "host":
		return nil, fmt.Errorf("attach container %s: it uses the network of the host (--network host), which cannot be attached; give the host an address with: weft expose", ref)
	case strings.HasPrefix(c.NetworkMode, "container:"):
		return nil, fmt.Errorf("attach container %s: it uses the network of another container (--network %s); attach that one", ref, c.NetworkMode)
	case !c.Running:
		return nil, fmt.Errorf("attach container %s: it does not run; start it first", ref)
	}
	return c, nil
}

// findRecorded finds a container that may be attached. If Docker does not answer, it
// finds the container in the records, and only its id and name are known.
func (e *dockerEngine) findRecorded(ctx context.Context, ref string) (place, *docker.Container, error) {
	c, err := e.client.Find(ctx, ref)
	if err == nil {
		p := place{owner: c.ID, name: c.Name}
		if c.Running {
			p.netns = c.Netns()
		}
		return p, c, nil
	}
	if errors.Is(err, docker.ErrNotFound) {
		return place{}, nil, err
	}
	p, ok := e.containers.recorded(ref)
	if !ok {
		return place{}, nil, err
	}
	return p, &docker.Container{ID: p.owner, Name: p.name}, nil
}
