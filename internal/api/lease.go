package api

import (
	"context"
	"net/netip"
	"net/url"
	"path/filepath"
)

// A lease gives addresses to an owner whose interface another program makes: the CNI
// plugin. Containers that the router attaches have no leases.

// LeaseRequest names an owner, and for POST /lease addresses.
type LeaseRequest struct {
	// Owner begins with the kind of client and a colon: "cni:NETWORK:CONTAINER:IFACE".
	Owner string `json:"owner"`
	// Addresses to give. None: one of the default subnet of each range, IPv4 and,
	// if there is one, IPv6. Asking again gives the same addresses.
	Addresses []Address `json:"addresses,omitempty"`
}

// LeaseReply has all addresses of the owner, and the bridge that its interface joins.
type LeaseReply struct {
	Addresses []netip.Prefix `json:"addresses"`
	// Bridge and MTU of the router, in bytes of IP packet.
	Bridge string `json:"bridge"`
	MTU    int    `json:"mtu"`
}

// Lease is an owner with its addresses.
type Lease struct {
	Owner     string         `json:"owner"`
	Addresses []netip.Prefix `json:"addresses"`
}

// DefaultStateDir is the default state folder of a router.
const DefaultStateDir = "/var/lib/weft"

// GoneFile returns the file in the state folder by which a client notes, while no router
// runs, that an owner is gone. The next router frees its addresses. The content of the
// file does not matter.
func GoneFile(stateDir, owner string) string {
	return filepath.Join(GoneDir(stateDir), url.PathEscape(owner))
}

// GoneDir is the folder of these files.
func GoneDir(stateDir string) string { return filepath.Join(stateDir, "gone") }

// GoneOwner returns the owner of such a file, given the last part of its path.
func GoneOwner(file string) (string, error) { return url.PathUnescape(file) }

// Lease gives an owner addresses.
func (c *Client) Lease(ctx context.Context, r LeaseRequest) (LeaseReply, error) {
	return send[LeaseReply](ctx, c, "/lease", r)
}

// Release takes all addresses from an owner and returns them.
func (c *Client) Release(ctx context.Context, owner string) ([]netip.Prefix, error) {
	a, err := send[AddressReply](ctx, c, "/release", LeaseRequest{Owner: owner})
	return a.Addresses, err
}

// Leases lists all leases.
func (c *Client) Leases(ctx context.Context) ([]Lease, error) {
	return fetch[[]Lease](ctx, c, "/leases")
}
