package api

import (
	"context"
	"net/netip"
	"net/url"
	"path/filepath"

	"golang.org/x/sys/unix"
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
	// Issued is when the client began, see Now; 0 if it does not say. What was issued first
	// counts as first, whatever order the router gets the requests in.
	Issued int64 `json:"issued,omitempty"`
	// Name of the owner for people: NAMESPACE/POD on Kubernetes. For POST /lease.
	Name string `json:"name,omitempty"`
	// Netns is the path of the namespace that the interface is for, and NetnsID its number.
	// Once the interface and the namespace are gone, the lease ends. For POST /lease.
	Netns   string `json:"netns,omitempty"`
	NetnsID uint64 `json:"netnsID,omitempty"`
	// Port, of a second POST /lease, says that the interface was made, and has this port. It
	// gives nothing, and fails if the lease was released meanwhile.
	Port string `json:"port,omitempty"`
}

// Now returns the present time for LeaseRequest.Issued: ns since the boot of the host.
func Now() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0
	}
	return t.Nano()
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
	Name      string         `json:"name,omitempty"` // for people
	Addresses []netip.Prefix `json:"addresses"`
}

// DefaultStateDir is the default state folder of a router.
const DefaultStateDir = "/var/lib/weft"

// GoneFile returns the file in the state folder by which a client notes, while no router
// runs, that an owner is gone. The next router frees its addresses. The content of the
// file is LeaseRequest.Issued in decimal.
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
func (c *Client) Release(ctx context.Context, r LeaseRequest) ([]netip.Prefix, error) {
	a, err := send[AddressReply](ctx, c, "/release", r)
	return a.Addresses, err
}

// Leases lists all leases.
func (c *Client) Leases(ctx context.Context) ([]Lease, error) {
	return fetch[[]Lease](ctx, c, "/leases")
}
