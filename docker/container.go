package docker

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/weft-net/weft/docker/track"
	"github.com/weft-net/weft/internal/netdev"
)

// DefaultHost is where an engine listens by default.
const DefaultHost = "unix:///var/run/docker.sock"

// answerTimeout bounds how long the engine may take for one answer.
const answerTimeout = 10 * time.Second

// Container is what weft needs to know about a container.
type Container struct {
	ID          string
	Name        string // without the slash that the engine puts before it
	Running     bool
	PID         int    // of its first process; 0 if it does not run
	Since       string // when this run began, as the engine writes it
	NetworkMode string
	Hostname    string
	Domainname  string
	HostsPath   string // of its /etc/hosts, on the host
	Endpoints   []Endpoint
}

// Endpoint is a container on one of the engine's networks.
type Endpoint struct {
	Network, NetworkID string // name and id
	ID                 string
	MAC                string
	Addresses          []netip.Prefix
	Aliases            []string // names on that network
}

// Netns returns the path of the network namespace of a container that runs.
func (c *Container) Netns() string { return netdev.NSByPID(c.PID) }

// state is the container as a Tracker sees it.
func (c *Container) state() *track.State {
	return &track.State{Running: c.Running, Since: c.Since, Shape: fmt.Sprint(c.Name, c.Endpoints)}
}

// ShortID returns the prefix of the ID that the engine shows.
func (c *Container) ShortID() string { return ShortID(c.ID) }

// ShortID returns the prefix of an ID that the engine shows.
func ShortID(id string) string { return id[:min(12, len(id))] }

// ErrNotFound is the cause when there is no such container.
var ErrNotFound = errors.New("there is no such container")

// Client asks an engine. It is safe for concurrent use.
type Client struct {
	host string
}

// NewClient returns a client of the engine at host, like DefaultHost. It does
// not connect.
func NewClient(host string) (*Client, error) {
	if _, err := client.ParseHostURL(host); err != nil {
		return nil, fmt.Errorf("docker engine %q: %w", host, err)
	}
	return &Client{host: host}, nil
}

// Host returns what NewClient was given.
func (c *Client) Host() string { return c.host }

// Open returns a connection that uses an API version of the engine that listens now.
// Another engine may listen at the next call. Close the connection after use.
func (c *Client) Open() (*client.Client, error) {
	return client.New(client.WithHost(c.host), client.WithUserAgent("weft"))
}

// reference matches what an engine accepts as an ID, a prefix of one, or a name.
var reference = regexp.MustCompile(`^/?[A-Za-z0-9][A-Za-z0-9_.-]*$`)

// Find asks for a container by id, unique prefix or name.
func (c *Client) Find(ctx context.Context, ref string) (*Container, error) {
	if !reference.MatchString(ref) {
		return nil, fmt.Errorf("container %q: want an id or a name", ref)
	}
	api, err := c.Open()
	if err != nil {
		return nil, fmt.Errorf("ask docker at %s: %w", c.host, err)
	}
	defer api.Close()
	return inspect(ctx, api, strings.TrimPrefix(ref, "/"))
}

func inspect(ctx context.Context, api *client.Client, ref string) (*Container, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	r, err := api.ContainerInspect(ctx, ref, client.ContainerInspectOptions{})
	switch {
	case errdefs.IsNotFound(err):
		return nil, fmt.Errorf("container %s: %w", ref, ErrNotFound)
	case client.IsErrConnectionFailed(err):
		return nil, fmt.Errorf("container %s: the docker engine does not run on this host: %w", ref, err)
	case errors.Is(err, context.DeadlineExceeded):
		return nil, fmt.Errorf("container %s: the docker engine does not answer: %w", ref, context.DeadlineExceeded)
	case err != nil:
		return nil, fmt.Errorf("container %s: ask docker: %w", ref, err)
	}
	return fromInspect(&r.Container), nil
}

// fromInspect copies the engine's answer, of which any part may be missing.
func fromInspect(r *container.InspectResponse) *Container {
	c := &Container{ID: r.ID, Name: strings.TrimPrefix(r.Name, "/"), HostsPath: r.HostsPath}
	if r.State != nil {
		c.Since, c.PID = r.State.StartedAt, r.State.Pid
		c.Running = r.State.Running && r.State.Pid > 0 && !r.State.Restarting
	}
	if r.HostConfig != nil {
		c.NetworkMode = string(r.HostConfig.NetworkMode)
	}
	if r.Config != nil {
		c.Hostname, c.Domainname = r.Config.Hostname, r.Config.Domainname
	}
	if r.NetworkSettings == nil {
		return c
	}
	for name, e := range r.NetworkSettings.Networks {
		if e == nil {
			continue
		}
		end := Endpoint{Network: name, NetworkID: e.NetworkID, ID: e.EndpointID, MAC: e.MacAddress.String(), Aliases: e.Aliases}
		for _, a := range []struct {
			addr netip.Addr
			bits int
		}{{e.IPAddress, e.IPPrefixLen}, {e.GlobalIPv6Address, e.GlobalIPv6PrefixLen}} {
			if p := netip.PrefixFrom(a.addr, a.bits); p.IsValid() {
				end.Addresses = append(end.Addresses, p)
			}
		}
		c.Endpoints = append(c.Endpoints, end)
	}
	slices.SortFunc(c.Endpoints, func(a, b Endpoint) int { return strings.Compare(a.Network, b.Network) })
	return c
}
