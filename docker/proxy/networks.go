package proxy

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"github.com/weft-net/weft/docker/plugin"
)

// ManagedLabel marks networks that weft created. When weft stops, those without
// containers are deleted.
const ManagedLabel = "weft.made"

// networkJoin is a Docker network to connect a container to, with its addresses.
type networkJoin struct {
	network    string
	addr       netip.Addr // the zero Addr: any
	more       []string   // further addresses, as weft attach takes them
	allowSpoof bool       // see plugin.AllowSpoofOption
	// container and hostname are set if its /etc/hosts is to name its address.
	container, hostname string
}

func (j networkJoin) settings() *network.EndpointSettings {
	s := new(network.EndpointSettings)
	if j.addr.IsValid() {
		s.IPAMConfig = &network.EndpointIPAMConfig{IPv4Address: j.addr}
	}
	s.DriverOpts = make(map[string]string)
	if len(j.more) > 0 {
		s.DriverOpts[plugin.AddressesOption] = strings.Join(j.more, " ")
	}
	if j.allowSpoof {
		s.DriverOpts[plugin.AllowSpoofOption] = "true"
	}
	if j.container != "" {
		s.DriverOpts[plugin.HostsOption] = j.container + " " + j.hostname
	}
	return s
}

// networkName returns the name of the network of a subnet. It is the default network
// if that has the same properties.
func (p *Proxy) networkName(subnet netip.Prefix, internal bool) string {
	if subnet == p.Subnet && !internal && !p.NoMulticastRoute {
		return plugin.Name
	}
	name := plugin.Name + "-" + strings.ReplaceAll(subnet.String(), "/", "-")
	if internal {
		name += "-internal"
	}
	if p.NoMulticastRoute {
		name += "-unicast"
	}
	return name
}

// ensureNetwork returns how to join the network of a request, and creates the network
// if it is missing.
func (p *Proxy) ensureNetwork(ctx context.Context, api *client.Client, want *addressRequest, internal bool) (networkJoin, error) {
	p.networkMu.Lock()
	defer p.networkMu.Unlock()
	j := networkJoin{network: p.networkName(want.subnet, internal), addr: want.addr, more: want.more}
	r, err := api.NetworkInspect(ctx, j.network, client.NetworkInspectOptions{})
	switch {
	case err == nil && r.Network.Driver != plugin.Name:
		return j, fmt.Errorf("docker has a network %s of another driver, %s", j.network, r.Network.Driver)
	case err == nil:
		return j, nil
	case !errdefs.IsNotFound(err):
		return j, fmt.Errorf("look up docker's network %s: %w", j.network, err)
	}
	err = MakeNetwork(ctx, api, j.network, NetworkOptions{
		Subnet: want.subnet, Internal: internal, Multicast: !p.NoMulticastRoute, Outside: want.addr.IsValid(),
	})
	if err != nil && !errdefs.IsConflict(err) { // a conflict: it was created meanwhile
		return j, fmt.Errorf("create docker's network %s: %w", j.network, err)
	}
	return j, nil
}

// NetworkOptions are the properties of a network of weft's driver.
type NetworkOptions struct {
	Subnet    netip.Prefix
	Internal  bool
	Multicast bool // containers send multicast over it
	// Outside allows a subnet outside weft's address ranges.
	Outside bool
}

// MakeNetwork creates a network of weft's driver.
func MakeNetwork(ctx context.Context, api *client.Client, name string, n NetworkOptions) error {
	_, err := api.NetworkCreate(ctx, name, client.NetworkCreateOptions{
		Driver:   plugin.Name,
		Internal: n.Internal,
		Labels:   map[string]string{ManagedLabel: ""},
		Options:  map[string]string{plugin.MulticastOption: fmt.Sprint(n.Multicast)},
		IPAM: &network.IPAM{
			Driver:  plugin.Name,
			Options: map[string]string{plugin.OutsideOption: fmt.Sprint(n.Outside)},
			// Explicit, because docker refuses a subnet that its IPAM driver chose if
			// the host has a route to it.
			Config: []network.IPAMConfig{{Subnet: n.Subnet}},
		},
	})
	return err
}

// isOurNetwork reports whether a network, by name or id, is one of weft's driver.
func isOurNetwork(ctx context.Context, api *client.Client, name string) bool {
	if name == "" || slices.Contains([]string{modeDefault, modeBridge, modeNone, "host"}, name) || strings.HasPrefix(name, "container:") {
		return false
	}
	r, err := api.NetworkInspect(ctx, name, client.NetworkInspectOptions{})
	return err == nil && r.Network.Driver == plugin.Name
}

// createNetwork makes networks of weft's driver use weft's IPAM driver too, unless
// the user chose another one.
func (p *Proxy) createNetwork(ctx context.Context, req *http.Request, body []byte) (*response, error) {
	doc, err := parseDocument(body)
	if err != nil {
		return p.forward(ctx, req, body)
	}
	var driver, source string
	if err := doc.get("Driver", &driver); err != nil || driver != plugin.Name {
		return p.forward(ctx, req, body)
	}
	ipam, err := doc.object("IPAM")
	if err == nil {
		err = ipam.get("Driver", &source)
	}
	if err != nil || source != "" && source != "default" {
		return p.forward(ctx, req, body)
	}
	if err := ipam.set("Driver", plugin.Name); err != nil {
		return nil, err
	}
	if err := doc.set("IPAM", ipam); err != nil {
		return nil, err
	}
	edited, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	return p.forward(ctx, req, edited)
}
