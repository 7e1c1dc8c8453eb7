package api

import (
	"context"
	"net/netip"
	"net/url"
	"path/filepath"
)

// A lease is addresses for an owner whose interface somebody else makes: a CNI
// plugin, that is. What the routers' own attach has is no lease.

// LeaseRequest names an owner, and for POST /lease addresses.
type LeaseRequest struct {
	// Owner begins with a word of who asks and a colon: "cni:NETWORK:CONTAINER:IFACE".
	Owner string `json:"owner"`
	// Addresses to give. None: one of the default subnet of each range, IPv4 and,
	// where there is one, IPv6. To ask again is to get the same again.
	Addresses []Address `json:"addresses,omitempty"`
}

// LeaseReply tells what the owner has, and on what.
type LeaseReply struct {
	Addresses []netip.Prefix `json:"addresses"`
	// Bridge and MTU of the router, in bytes of IP packet.
	Bridge string `json:"bridge"`
	MTU    int    `json:"mtu"`
}

// Lease is what an owner has.
type Lease struct {
	Owner     string         `json:"owner"`
	Addresses []netip.Prefix `json:"addresses"`
}

// DefaultStateDir is the state folder of a router that was not told another.
const DefaultStateDir = "/var/lib/weft"

// GoneFile is where in the state folder of a router that is away a file, of any
// content, says that an owner left: the next router frees its addresses.
func GoneFile(stateDir, owner string) string {
	return filepath.Join(GoneFolder(stateDir), url.PathEscape(owner))
}

// GoneFolder is the folder of those files, and GoneOwner what one of them names.
func GoneFolder(stateDir string) string { return filepath.Join(stateDir, "gone") }

// GoneOwner is the inverse of GoneFile for the last part of the path.
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

// Leases lists the owners of leases and what they have.
func (c *Client) Leases(ctx context.Context) ([]Lease, error) {
	return fetch[[]Lease](ctx, c, "/leases")
}
