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

// MadeLabel marks networks that weft made: they go with it when no container
// has them.
const ManagedLabel = "weft.made"

// join is a network of the engine's, and what to ask it for.
type networkJoin struct {
	network string
	addr    netip.Addr // the zero Addr: any
	more    []string   // addresses besides
}

func (j networkJoin) settings() *network.EndpointSettings {
	s := new(network.EndpointSettings)
	if j.addr.IsValid() {
		s.IPAMConfig = &network.EndpointIPAMConfig{IPv4Address: j.addr}
	}
	if len(j.more) > 0 {
		s.DriverOpts = map[string]string{plugin.AddressesOption: strings.Join(j.more, " ")}
	}
	return s
}

// networkName names the network of a subnet. The default network serves for
// what is like it.
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

// network returns the network for a wish, which is made if it is not there.
func (p *Proxy) ensureNetwork(ctx context.Context, api *client.Client, w *addressRequest, internal bool) (networkJoin, error) {
	p.networkMu.Lock()
	defer p.networkMu.Unlock()
	j := networkJoin{p.networkName(w.subnet, internal), w.addr, w.more}
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
		Subnet: w.subnet, Internal: internal, Multicast: !p.NoMulticastRoute, Outside: w.addr.IsValid(),
	})
	if err != nil && !errdefs.IsConflict(err) { // somebody else was first
		return j, fmt.Errorf("make docker's network %s: %w", j.network, err)
	}
	return j, nil
}

// Network says what a network of weft's driver is like.
type NetworkOptions struct {
	Subnet    netip.Prefix
	Internal  bool
	Multicast bool // goes over it
	// Outside allows for a subnet outside of weft's ranges.
	Outside bool
}

// MakeNetwork makes a network of weft's driver.
func MakeNetwork(ctx context.Context, api *client.Client, name string, n NetworkOptions) error {
	_, err := api.NetworkCreate(ctx, name, client.NetworkCreateOptions{
		Driver:   plugin.Name,
		Internal: n.Internal,
		Labels:   map[string]string{ManagedLabel: ""},
		Options:  map[string]string{plugin.MulticastOption: fmt.Sprint(n.Multicast)},
		IPAM: &network.IPAM{
			Driver:  plugin.Name,
			Options: map[string]string{plugin.OutsideOption: fmt.Sprint(n.Outside)},
			// Named, because docker refuses a subnet that it did not get by name where
			// the host has a route to it.
			Config: []network.IPAMConfig{{Subnet: n.Subnet}},
		},
	})
	return err
}

// isOurs reports whether a network, by name or id, is one of weft's driver.
func isOurNetwork(ctx context.Context, api *client.Client, name string) bool {
	if name == "" || slices.Contains([]string{modeDefault, modeBridge, modeNone, "host"}, name) || strings.HasPrefix(name, "container:") {
		return false
	}
	r, err := api.NetworkInspect(ctx, name, client.NetworkInspectOptions{})
	return err == nil && r.Network.Driver == plugin.Name
}

// createNetwork has networks of weft's driver take their addresses from weft
// too, unless the user says where from.
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
