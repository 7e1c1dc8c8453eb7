package daemon

import (
	"context"

	"github.com/weft-net/weft/dns"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/keeper"
	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/mesh/bindings"
	"github.com/weft-net/weft/mesh/peer"
)

// node is the mesh, the switch and the allocators of this host. A *host is one; tests
// have others, which need no network.
type node interface {
	// Run works until ctx ends, then releases all that it holds in the kernel except
	// the bridge, and returns nil; or it returns why it could not go on.
	Run(ctx context.Context) error
	// Close releases everything, if Run is not called.
	Close()
	// SetTargets makes targets, HOST or HOST:PORT, the peers to keep connected to, and
	// dials those that have no session without waiting for the end of their back-off.
	// Other sessions stay. The callee owns the slice.
	SetTargets(targets []string)
	// Report fills in Router, IPAM, IPAM6 and DNS, with some of the lists that may be long,
	// appends to Warnings, and notes in Omitted what it leaves out. It leaves the targets to
	// the daemon, and returns the error of ctx once that has ended.
	Report(ctx context.Context, r *api.Report, lists api.Lists) error
	// RemovePeers gives the addresses of dead peers, given by name or nickname, to others,
	// in every range: by a decision of the voters, or on the word of this host alone if
	// Force is set and there is no quorum.
	RemovePeers(ctx context.Context, r api.PeersRequest) ([]api.Removed, error)
	// Ban records that the operator of this host wants peers to be banned, or not to be
	// banned any more, in every range, and returns how far that is.
	Ban(r api.BanRequest) ([]api.Vote, error)
	api.Passwords
	// Adopt makes all peers of this router's ring abandon it and join another ring; only
	// this router if here is set. The ring is given by its number, as the warnings of the
	// report show it, or by the beginning of that.
	Adopt(ring string, here bool) error
	// HandOver gives the address ranges of this host to other peers. Run is still
	// running, and nothing else is called after HandOver.
	HandOver(ctx context.Context) error
}

// parts is a node with those of its parts that the daemon uses by themselves.
type parts struct {
	node      node
	addresses addresses
	names     *dns.Service
	// bind announces which MAC and IP addresses weft gave on this host.
	bind      func([]bindings.Binding) error
	newEngine newEngine
}

// newEngine makes the engine that c names, whose attached containers are those of
// containers.
type newEngine func(c DockerConfig, containers *dockerContainers, names *dns.Service) (engine, error)

// assemble makes the parts of a router, whose objects in the kernel k keeps. The bridge exists, and the process holds the
// lock on the state folder.
type assemble func(c *Config, id *peer.Identity, st *store.Store, k *keeper.Keeper) (*parts, error)
