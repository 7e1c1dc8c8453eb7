package cni

import (
	"cmp"
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

// conf is the configuration of a network, see doc.go.
type conf struct {
	types.PluginConf
	Bridge           string `json:"bridge"`
	MTU              int    `json:"mtu"`
	HairpinMode      *bool  `json:"hairpinMode"`
	IsDefaultGateway *bool  `json:"isDefaultGateway"`
	IPMasq           *bool  `json:"ipMasq"`
	AllowSpoof       bool   `json:"allowSpoof"`
	Socket           string `json:"socket"`
	StateDir         string `json:"stateDir"`
	IPAM             ipam   `json:"ipam"`
	RuntimeConfig    struct {
		IPs []string `json:"ips"`
		MAC string   `json:"mac"`
		// Limits that a later plugin of the chain sets, in bits per second.
		Bandwidth struct {
			IngressRate uint64 `json:"ingressRate"`
			EgressRate  uint64 `json:"egressRate"`
		} `json:"bandwidth"`
		// Of the pod, if the configuration has this capability.
		Annotations map[string]string `json:"io.kubernetes.cri.pod-annotations"`
	} `json:"runtimeConfig"`

	raw       []byte          // the configuration as it was given, for another plugin
	previous  *current.Result // result of the earlier plugins of the chain, nil if there are none
	mac       net.HardwareAddr
	requested []api.Address
	issued    int64 // when the verb began, see api.Now
}

type ipam struct {
	Type    string         `json:"type"`
	Subnet  string         `json:"subnet"`
	Gateway string         `json:"gateway"`
	Routes  []*types.Route `json:"routes"` // nil adds a default route

	gateway netip.Addr
}

// failed returns an error with one of the codes of the specification.
func failed(code uint, format string, args ...any) *types.Error {
	return types.NewError(code, fmt.Sprintf(format, args...), "")
}

// parse parses and validates a configuration.
func parse(b []byte) (*conf, error) {
	c := &conf{raw: b, Socket: api.DefaultSocket, StateDir: api.DefaultStateDir}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, failed(types.ErrDecodingFailure, "read the network's configuration: %v", err)
	}
	// The specification: a configuration without a version is of the first one.
	c.CNIVersion = cmp.Or(c.CNIVersion, "0.1.0")
	if err := c.parsePrevious(); err != nil {
		return nil, failed(types.ErrDecodingFailure, "read prevResult: %v", err)
	}
	if err := c.validate(); err != nil {
		return nil, failed(types.ErrInvalidNetworkConfig, "network %q: %v", c.Name, err)
	}
	return c, nil
}

// parsePrevious parses the result of the earlier plugins of the chain, if there is one.
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

// checkComplete refuses a result with null in its lists.
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
		return errors.New("ipam.routes: null is not a route")
	}
	if m := c.RuntimeConfig.MAC; m != "" {
		if c.mac, err = net.ParseMAC(m); err != nil || len(c.mac) != 6 {
			return fmt.Errorf("runtimeConfig.mac %q: want six bytes, like 02:00:00:00:00:01", m)
		}
	}
	for _, s := range c.RuntimeConfig.IPs {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return fmt.Errorf("runtimeConfig.ips: %q: want an address with the prefix length of its subnet, like 10.32.0.5/12", s)
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
			return fmt.Errorf("ipam.subnet %q: want a network, like 10.32.1.0/24", s)
		}
		c.requested = append(c.requested, api.Address{Kind: api.FromSubnet, Prefix: p.Masked()})
	}
	return nil
}

// usesRouterIPAM reports whether the router allocates the addresses.
func (c *conf) usesRouterIPAM() bool { return c.IPAM.Type == "" || c.IPAM.Type == IPAMName }

// rateLimited reports whether a later plugin of the chain limits the container's rate.
func (c *conf) rateLimited() bool {
	b := c.RuntimeConfig.Bandwidth
	return b.IngressRate > 0 || b.EgressRate > 0
}

// AllowSpoofAnnotation is the annotation of a pod that lets it send with other addresses than its
// own.
const AllowSpoofAnnotation = "weft.internal/allow-spoof"

// allowSpoof reports whether the container may send with other addresses than its own.
func (c *conf) allowSpoof() bool {
	return c.AllowSpoof || c.RuntimeConfig.Annotations[AllowSpoofAnnotation] == "true"
}

func (c *conf) client() *api.Client { return api.NewClient(c.Socket) }

func (c *conf) bridge() string {
	if c.Bridge == "" {
		return netdev.BridgeName
	}
	return c.Bridge
}

// isOn returns a flag whose default is on.
func isOn(flag *bool) bool { return flag == nil || *flag }

// owner is the owner of an attachment's addresses in the router's records.
func (c *conf) owner(container, iface string) string {
	return ownersOf(c.Name) + container + ":" + iface
}

// ownersOf is the prefix of all owners of a network. By the specification none of the
// three parts of an owner contains a colon.
func ownersOf(network string) string { return api.OwnerCNI + network + ":" }

func (c *conf) ownerOf(args *skel.CmdArgs) string { return c.owner(args.ContainerID, args.IfName) }
