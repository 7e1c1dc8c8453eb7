package api

import (
	"context"
	"net/http"
	"net/netip"
)

// Routes adds a group of routes to a server.
type Routes func(*http.ServeMux)

// Handler serves groups of routes.
//
// The methods of the interfaces below are called concurrently, and ctx ends when
// the client hangs up. An error that wraps an *Error keeps its class on its way
// to the client.
func Handler(groups ...Routes) http.Handler {
	mux := http.NewServeMux()
	for _, add := range groups {
		add(mux)
	}
	return mux
}

// Status reports the state of a router. Its routes change nothing.
type Status interface {
	Ready(ctx context.Context) Ready
	// Report returns the state of everything, with some of the lists that may be long and
	// the lengths of the others in Omitted, or the error of ctx. The server only reads it.
	Report(ctx context.Context, lists Lists) (*Report, error)
}

// StatusRoutes serves /ready, /report and /status, and /metrics unless metrics is
// nil, to the clients of one door. A router with several doors has one Reports.
func StatusRoutes(b Status, metrics http.Handler) Routes { return NewReports(b, metrics).Control() }

// Containers attaches containers.
type Containers interface {
	Attachments(ctx context.Context) ([]Attachment, error)
	// Attach gives a container addresses, and Detach takes them.
	Attach(ctx context.Context, r AttachRequest) ([]netip.Prefix, error)
	Detach(ctx context.Context, r AttachRequest) ([]netip.Prefix, error)
}

// ContainerRoutes serves /ps, /attach and /detach.
func ContainerRoutes(b Containers) Routes {
	return func(mux *http.ServeMux) {
		mux.Handle("GET /ps", get(b.Attachments))
		mux.Handle("POST /attach", addresses(b.Attach))
		mux.Handle("POST /detach", addresses(b.Detach))
	}
}

// Exposures gives the bridge addresses.
type Exposures interface {
	Expose(ctx context.Context, r ExposeRequest) ([]netip.Prefix, error)
	Hide(ctx context.Context, r ExposeRequest) ([]netip.Prefix, error)
}

// ExposureRoutes serves /expose and /hide.
func ExposureRoutes(b Exposures) Routes {
	return func(mux *http.ServeMux) {
		mux.Handle("POST /expose", addresses(b.Expose))
		mux.Handle("POST /hide", addresses(b.Hide))
	}
}

// Leases gives addresses to owners whose interfaces another program makes.
type Leases interface {
	// Lease gives addresses. Undo takes back what it gave, if nobody got the reply.
	Lease(ctx context.Context, r LeaseRequest) (reply LeaseReply, undo func(), err error)
	// Release takes all addresses of an owner, also those that a Lease at work gives.
	Release(ctx context.Context, r LeaseRequest) ([]netip.Prefix, error)
	Leases(ctx context.Context) ([]Lease, error)
}

// LeaseRoutes serves /lease, /release and /leases.
func LeaseRoutes(b Leases) Routes {
	return func(mux *http.ServeMux) {
		mux.Handle("POST /lease", undoable(b.Lease))
		mux.Handle("POST /release", addresses(b.Release))
		mux.Handle("GET /leases", get(b.Leases))
	}
}

// Guards keeps containers from sending with the addresses of others.
type Guards interface {
	// Guard makes the port of a container, which another program has made and not set up
	// yet, drop such frames from now on, as the alias of the port says.
	Guard(ctx context.Context, r GuardRequest) error
}

// GuardRoutes serves /guard.
func GuardRoutes(b Guards) Routes {
	return func(mux *http.ServeMux) { mux.Handle("POST /guard", command(b.Guard)) }
}

// Names registers host names and looks them up.
type Names interface {
	AddName(ctx context.Context, r NameRequest) error
	RemoveName(ctx context.Context, r NameRequest) error
	LookupName(ctx context.Context, r LookupRequest) ([]string, error)
}

// NameRoutes serves /dns-add, /dns-remove and /dns-lookup.
func NameRoutes(b Names) Routes {
	return func(mux *http.ServeMux) {
		mux.Handle("POST /dns-add", command(b.AddName))
		mux.Handle("POST /dns-remove", command(b.RemoveName))
		mux.Handle("POST /dns-lookup", post(func(ctx context.Context, r LookupRequest) (LookupReply, error) {
			found, err := b.LookupName(ctx, r)
			return LookupReply{Found: found}, err
		}))
	}
}

// Peers decides which peers a router connects to, and which own addresses.
type Peers interface {
	Connect(ctx context.Context, r PeersRequest) error
	Forget(ctx context.Context, r PeersRequest) error
	RemovePeers(ctx context.Context, r PeersRequest) ([]Removed, error)
	// Adopt makes all peers of this router's ring of addresses leave it for
	// another ring that the router has met.
	Adopt(ctx context.Context, r AdoptRequest) error
	// Ban is the vote of this host's operator for the bans of peers, or for their ends.
	Ban(ctx context.Context, r BanRequest) ([]Vote, error)
	// Prime returns when addresses can be given out.
	Prime(ctx context.Context) error
}

// PeerRoutes serves /connect, /forget, /rmpeer, /adopt, /ban and /prime.
func PeerRoutes(b Peers) Routes {
	return func(mux *http.ServeMux) {
		mux.Handle("POST /connect", command(b.Connect))
		mux.Handle("POST /forget", command(b.Forget))
		mux.Handle("POST /rmpeer", post(func(ctx context.Context, r PeersRequest) (RemoveReply, error) {
			removed, err := b.RemovePeers(ctx, r)
			return RemoveReply{Removed: removed}, err
		}))
		mux.Handle("POST /adopt", command(b.Adopt))
		mux.Handle("POST /ban", post(func(ctx context.Context, r BanRequest) (BanReply, error) {
			votes, err := b.Ban(ctx, r)
			return BanReply{Votes: votes}, err
		}))
		mux.Handle("POST /prime", bare(b.Prime))
	}
}

// Passwords changes the password of the mesh.
type Passwords interface {
	Rotation(ctx context.Context) (Rotation, error)
	// Rotate starts a change, or goes on with one, and returns its state.
	Rotate(ctx context.Context, r RotateRequest) (Rotation, error)
	// Password returns the password that the router offers to others.
	Password(ctx context.Context) (PasswordReply, error)
}

// PasswordRoutes serves /rotation, /rotate and /password.
func PasswordRoutes(b Passwords) Routes {
	return func(mux *http.ServeMux) {
		mux.Handle("GET /rotation", get(b.Rotation))
		mux.Handle("POST /rotate", post(b.Rotate))
		mux.Handle("POST /password", post(func(ctx context.Context, _ Empty) (PasswordReply, error) { return b.Password(ctx) }))
	}
}

// Lifecycle ends a router.
type Lifecycle interface {
	// Stop leaves the mesh, and makes the router end after Stop has returned.
	Stop(ctx context.Context) error
	// Reset hands the address ranges over, leaves the mesh, and makes the router
	// end and remove what it made on the host.
	Reset(ctx context.Context) error
}

// LifecycleRoutes serves /stop and /reset.
func LifecycleRoutes(b Lifecycle) Routes {
	return func(mux *http.ServeMux) {
		mux.Handle("POST /stop", bare(b.Stop))
		mux.Handle("POST /reset", bare(b.Reset))
	}
}
