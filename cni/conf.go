package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
)

// conf is a network's configuration, as doc.go draws it.
type conf struct {
	types.PluginConf
	Bridge           string `json:"bridge"`
	MTU              int    `json:"mtu"`
	HairpinMode      *bool  `json:"hairpinMode"`
	IsDefaultGateway *bool  `json:"isDefaultGateway"`
	IPMasq           *bool  `json:"ipMasq"`
	Socket           string `json:"socket"`
	StateDir         string `json:"stateDir"`
	IPAM             ipam   `json:"ipam"`
	RuntimeConfig    struct {
		IPs []string `json:"ips"`
		MAC string   `json:"mac"`
		// What a plugin that comes after is going to limit, in bits a second.
		Bandwidth struct {
			IngressRate uint64 `json:"ingressRate"`
			EgressRate  uint64 `json:"egressRate"`
		} `json:"bandwidth"`
	} `json:"runtimeConfig"`

	raw       []byte          // as it was given, for another plugin
	previous  *current.Result // of the plugins that came before, nil if none did
	mac       net.HardwareAddr
	requested []api.Address
}

type ipam struct {
	Type    string         `json:"type"`
	Subnet  string         `json:"subnet"`
	Gateway string         `json:"gateway"`
	Routes  []*types.Route `json:"routes"` // nil: a default route

	gateway netip.Addr
}

// failed is an error with one of the codes of the specification.
func failed(code uint, format string, args ...any) *types.Error {
	return types.NewError(code, fmt.Sprintf(format, args...), "")
}

// parse reads a configuration.
func parse(b []byte) (*conf, error) {
	c := &conf{raw: b, Socket: api.DefaultSocket, StateDir: api.DefaultStateDir}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, failed(types.ErrDecodingFailure, "read the network's configuration: %v", err)
	}
	if err := c.parsePrevious(); err != nil {
		return nil, failed(types.ErrDecodingFailure, "read the result of the plugins before: %v", err)
	}
	if err := c.validate(); err != nil {
		return nil, failed(types.ErrInvalidNetworkConfig, "network %q: %v", c.Name, err)
	}
	return c, nil
}

// parseBefore reads the result of the plugins that came before, if there were any.
func (c *conf) parsePrevious() error {
	err := version.ParsePrevResult(&c.PluginConf)
	if err != nil || c.PrevResult == nil {
		return err
	}
	if c.previous, err = current.NewResultFromResult(c.PrevResult); err != nil {
		return err
	}
	return checkComplete(c.previous)
}

// whole refuses a result with holes.
func checkComplete(r *current.Result) error {
	if slices.Contains(r.IPs, nil) || slices.Contains(r.Interfaces, nil) || slices.Contains(r.Routes, nil) {
		return errors.New("a result has null among its interfaces, addresses or routes")
	}
	return nil
}

func (c *conf) validate() (err error) {
	if c.MTU < 0 || c.MTU > 65535 {
		return fmt.Errorf("mtu %d: want 0 to 65535", c.MTU)
	}
	if slices.Contains(c.IPAM.Routes, nil) {
		return errors.New("ipam.routes: null is no route")
	}
	if m := c.RuntimeConfig.MAC; m != "" {
		if c.mac, err = net.ParseMAC(m); err != nil || len(c.mac) != 6 {
			return fmt.Errorf("runtimeConfig.mac %q: want six bytes as 02:00:00:00:00:01", m)
		}
	}
	for _, s := range c.RuntimeConfig.IPs {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return fmt.Errorf("runtimeConfig.ips: %q: want an address with the length of its subnet, as 10.32.0.5/12", s)
		}
		c.requested = append(c.requested, api.Address{Kind: api.Exactly, Prefix: p})
	}
	if g := c.IPAM.Gateway; g != "" {
		if c.IPAM.gateway, err = netip.ParseAddr(g); err != nil {
			return fmt.Errorf("ipam.gateway %q: want an address", g)
		}
	}
	if s := c.IPAM.Subnet; s != "" && len(c.requested) == 0 {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return fmt.Errorf("ipam.subnet %q: want a network as 10.32.1.0/24", s)
		}
		c.requested = append(c.requested, api.Address{Kind: api.FromSubnet, Prefix: p.Masked()})
	}
	return nil
}

// own reports whether the router gives the addresses.
func (c *conf) usesRouterIPAM() bool { return c.IPAM.Type == "" || c.IPAM.Type == IPAMName }

// shaped reports whether a plugin that comes after is going to limit the container.
func (c *conf) rateLimited() bool {
	b := c.RuntimeConfig.Bandwidth
	return b.IngressRate > 0 || b.EgressRate > 0
}

func (c *conf) client() *api.Client { return api.NewClient(c.Socket) }

func (c *conf) bridge() string {
	if c.Bridge == "" {
		return netdev.BridgeName
	}
	return c.Bridge
}

// isOn reads a flag that is on unless it is switched off.
func isOn(flag *bool) bool { return flag == nil || *flag }

// owner is what an attachment is called in the router's addresses.
func (c *conf) owner(container, iface string) string {
	return ownersOf(c.Name) + container + ":" + iface
}

// ownersOf is what the owners of a network begin with. None of the three parts
// has a colon, by the specification.
func ownersOf(network string) string { return "cni:" + network + ":" }

func (c *conf) ownerOf(args *skel.CmdArgs) string { return c.owner(args.ContainerID, args.IfName) }
