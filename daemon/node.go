package daemon

import (
	"context"
	"net/netip"

	"github.com/weft-net/weft/dns"
	"github.com/weft-net/weft/internal/api"
)

// Node is the mesh, the switch and the allocators of this host, put together.
type Node interface {
	// Run does the work until ctx ends, then lets go of everything that it
	// holds in the kernel but the bridge, and returns nil; or returns why it
	// could not go on.
	Run(ctx context.Context) error
	// SetTargets makes targets, HOST or HOST:PORT, the ones to keep connected
	// to, and dials those that have no session without waiting for the end of
	// their back-off. Sessions with others stay. The slice is the callee's.
	SetTargets(targets []string)
	// Report fills in Router, IPAM and IPAM6 and appends to Warnings. The
	// targets are the daemon's to fill in.
	Report(r *api.Report)
	// RemovePeers takes over the ranges of dead peers, given by name or
	// nickname, in every universe.
	RemovePeers(ctx context.Context, peers []string) ([]api.Removed, error)
	// Adopt has all peers of the ring that differs from ring, a number as the
	// report's warnings give it or the beginning of one, leave theirs for it.
	Adopt(ring string) error
	// Leave takes leave of the mesh, after giving the address ranges of this
	// host to others if handover is set. Run is still running; nothing else is
	// called after it.
	Leave(ctx context.Context, handover bool) error
}

// Addresses is the allocator of one universe. Its methods may be called
// concurrently.
type Addresses interface {
	// Range is the range that addresses come from.
	Range() netip.Prefix
	// DefaultSubnet is the subnet for those who name none.
	DefaultSubnet() netip.Prefix
	// Allocate gives owner a free address of subnet, with its length, and has
	// that on disk. If owner has one there already, it returns that. It waits
	// for the ring and for space until ctx ends; its error then says what it
	// waited for.
	Allocate(ctx context.Context, owner string, subnet netip.Prefix) (netip.Prefix, error)
	// Claim gives owner a certain address of the universe. It waits as
	// Allocate does, and fails if another owner has it. Claiming twice is
	// harmless.
	Claim(ctx context.Context, owner string, addr netip.Prefix) error
	// Lookup returns what owner has.
	Lookup(owner string) []netip.Prefix
	// Owners returns all owners that have addresses on this host, and which.
	Owners() map[string][]netip.Prefix
	// Release takes an address from owner; it does not wait. An address that
	// owner does not have is no error.
	Release(owner string, addr netip.Addr) error
	// Prime returns when addresses can be given out.
	Prime(ctx context.Context) error
}

// Parts is what Assemble makes.
type Parts struct {
	Node Node
	// Ranges are the allocators, at most one for each family.
	Ranges []Addresses
	// Names is where host names are registered.
	Names *dns.Service
}

// usage is an error of class api.Usage.
func usage(text string) error { return &api.Error{Class: api.Usage, Text: text} }

// unavailable is an error of class api.Unavailable.
func unavailable(text string) error { return &api.Error{Class: api.Unavailable, Text: text} }
