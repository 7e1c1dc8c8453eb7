// Package api is the control API of a running weft: HTTP with JSON bodies on
// a unix socket that only root can open, and a read-only part of it on a TCP
// address of the loopback interface.
//
//	GET  /ready             Ready
//	GET  /status[/VIEW]     text; with Accept: application/json the Report that it is a view of
//	GET  /report[?lists=L]  Report; L names the lists to fill in, separated by commas, see Lists
//	GET  /metrics           Prometheus text
//	GET  /ps                []Attachment
//	POST /attach, /detach   AttachRequest -> AddressReply
//	POST /expose, /hide     ExposeRequest -> AddressReply
//	POST /lease             LeaseRequest -> LeaseReply
//	POST /release           LeaseRequest -> AddressReply
//	GET  /leases            []Lease
//	POST /dns-add           NameRequest -> Empty
//	POST /dns-remove        NameRequest -> Empty
//	POST /dns-lookup        LookupRequest -> LookupReply
//	POST /connect, /forget  PeersRequest -> Empty
//	POST /rmpeer            PeersRequest -> RemoveReply
//	POST /adopt             AdoptRequest -> Empty
//	POST /ban               BanRequest -> BanReply, at once
//	GET  /rotation          Rotation
//	POST /rotate            RotateRequest -> Rotation
//	POST /password          Empty -> PasswordReply
//	POST /prime             Empty -> Empty, once addresses can be given out
//	POST /stop, /reset      Empty -> Empty, once the router has left the mesh
//
// The first four are also on the read-only address. A reply other than 200
// has an Error as its body. Each group of routes has an interface that names
// what it needs of a router; see routes.go.
//
// The CLI, the CNI plugin and the Docker driver are clients. Server and
// client are safe for concurrent use.
package api

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Where a router listens by default.
const (
	DefaultSocket     = "/run/weft/weft.sock"
	DefaultStatusAddr = "127.0.0.1:6782"
)

// Ready reports that a router runs, and whether it has finished starting.
type Ready struct {
	Ready   bool   `json:"ready"`
	PID     int    `json:"pid"`
	Version string `json:"version"`
	Name    string `json:"name"`
}

// AttachRequest names a container and addresses.
type AttachRequest struct {
	// Netns is the path of the container's network namespace, as the router
	// sees the file system. Empty: Container names it.
	Netns string `json:"netns,omitempty"`
	// Container is a container of Docker's on the router's host: its id, the
	// beginning of the id, or its name.
	Container string `json:"container,omitempty"`
	// Addresses to give or take. None: for attach one of the default subnet,
	// for detach all.
	Addresses []Address `json:"addresses,omitempty"`
	// The other fields are for attach only. Hostname is a name for all addresses that
	// the container has then. Without a dot it is in the domain of the router.
	Hostname string `json:"hostname,omitempty"`
	// NoMulticastRoute leaves multicast to the container's other interfaces.
	NoMulticastRoute bool `json:"noMulticastRoute,omitempty"`
	// AllowSpoof lets the container send with other addresses than its own. The last
	// request for a container decides.
	AllowSpoof bool `json:"allowSpoof,omitempty"`
	// WithoutDNS gives the container no name in DNS.
	WithoutDNS bool `json:"withoutDNS,omitempty"`
	// RewriteHosts maps the container's own name to its addresses on the switch, in its
	// /etc/hosts. AddHosts, NAME:IP each, are added there.
	RewriteHosts bool     `json:"rewriteHosts,omitempty"`
	AddHosts     []string `json:"addHosts,omitempty"`
}

// ExposeRequest names addresses of the bridge. None: for expose one of the
// default subnet, for hide all.
type ExposeRequest struct {
	Addresses []Address `json:"addresses,omitempty"`
	// WithoutMasquerade omits the rules that translate addresses between
	// the containers' network and others.
	WithoutMasquerade bool `json:"withoutMasquerade,omitempty"`
	// Hostname, for expose only, is a name for these addresses.
	Hostname string `json:"hostname,omitempty"`
}

// NameRequest is a host name with addresses.
type NameRequest struct {
	// Container is the id of a container or the path of its namespace. Without one
	// the name is for addresses that no container of this host has.
	Container string `json:"container,omitempty"`
	// Hostname is in the domain of the router if it has no dot. If empty, it stands for
	// the container's first name in dns-add, and for all its names in dns-remove.
	Hostname string `json:"hostname,omitempty"`
	// Addresses to add or remove. None: all of the container's.
	Addresses []netip.Addr `json:"addresses,omitempty"`
}

// LookupRequest asks for the addresses of a name, or the names of an address.
type LookupRequest struct {
	Name string `json:"name"`
}

// LookupReply lists the names or addresses that were found; there may be none.
type LookupReply struct {
	Found []string `json:"found"`
}

// PeersRequest names peers: HOST[:PORT] for connect and forget, a name or a
// nickname for rmpeer.
type PeersRequest struct {
	Peers []string `json:"peers"`
	// Replace, for connect only, forgets all other targets.
	Replace bool `json:"replace,omitempty"`
	// Force, for rmpeer only, goes on without the voters if too few of them can be
	// reached to decide.
	Force bool `json:"force,omitempty"`
	// Operator, for rmpeer only, says that a person knows that the peers are dead: this router
	// agrees at once, and if it inherits their addresses it uses them at once. A program that
	// has only seen a sign of their death leaves it unset. Force needs it.
	Operator bool `json:"operator,omitempty"`
}

// BanRequest names peers, by name or nickname, that the operator wants to be banned.
type BanRequest struct {
	Peers []string `json:"peers"`
	Unban bool     `json:"unban,omitempty"`
	// Look asks how far the decision is, without a vote.
	Look bool `json:"look,omitempty"`
}

// BanReply has the vote on each peer, in the order of the request.
type BanReply struct {
	Votes []Vote `json:"votes"`
}

// RotateRequest starts a change of the password of the mesh, or goes on with one.
type RotateRequest struct {
	// Password is the new one. Empty: a generated one, or that of the change that is under
	// way if this host began it.
	Password []byte `json:"password,omitempty"`
	// Continue goes on with a change that another host began.
	Continue bool `json:"continue,omitempty"`
	// Peers are the names of the peers that get it.
	Peers []string `json:"peers"`
}

// PasswordReply has the password that the router offers to others.
type PasswordReply struct {
	Password []byte `json:"password"`
}

// Rotation is the state of a change of the password.
type Rotation struct {
	// Running is set until this host accepts only the password Target. If Ordered, By ordered
	// it at Since; By is empty if that peer cannot be reached. Otherwise the configuration of
	// this host has it.
	Running bool   `json:"running"`
	Target  string `json:"target"` // fingerprint of a password, equal on all hosts that have it
	Ordered bool   `json:"ordered,omitempty"`
	By      string `json:"by,omitempty"`
	// Own is set if a further request goes on with the change, and Resumable if it does with
	// Continue.
	Own       bool           `json:"own,omitempty"`
	Resumable bool           `json:"resumable,omitempty"`
	Bans      bool           `json:"bans,omitempty"` // peers are banned
	Since     time.Time      `json:"since,omitzero"`
	Step      string         `json:"step"`  // of this host; see RotationPeer
	Voter     bool           `json:"voter"` // this host may start a change
	Peers     []RotationPeer `json:"peers"`
	Faults    []string       `json:"faults,omitempty"`
}

// Steps of a peer towards a password.
const (
	StepSilent   = "says nothing"
	StepBehind   = "does not have it"
	StepAccepts  = "accepts it"
	StepOffers   = "uses it"
	StepFinished = "finished"
)

// RotationPeer is how far a peer is.
type RotationPeer struct {
	Peer      string `json:"peer"`
	NickName  string `json:"nickName,omitempty"`
	Step      string `json:"step"`
	Reachable bool   `json:"reachable"`
	// Needed is set if the old password stays valid until the peer has the new one.
	Needed bool `json:"needed"`
	// Named is set if the peer may get the password.
	Named bool `json:"named"`
	// Direct is set if this host has a session with it, so that it knows its address.
	Direct bool `json:"direct"`
}

// Behind returns the peers for which the others wait.
func (r *Rotation) Behind() (out []RotationPeer) {
	for _, p := range r.Peers {
		if (p.Needed || p.Named && p.Reachable) && p.Step != StepOffers && p.Step != StepFinished {
			out = append(out, p)
		}
	}
	return out
}

// Done reports whether all whose access counts accept only the password Target.
func (r *Rotation) Done() bool {
	return !r.Running && !slices.ContainsFunc(r.Peers, func(p RotationPeer) bool { return p.Needed && p.Reachable && p.Step != StepFinished })
}

// AdoptRequest names a ring of addresses by its number, or by the beginning of the
// number.
type AdoptRequest struct {
	Ring string `json:"ring"`
	// Here makes only this router change to the ring, without asking the voters.
	Here bool `json:"here,omitempty"`
}

// AddressReply lists addresses with the lengths of their subnets.
type AddressReply struct {
	Addresses []netip.Prefix `json:"addresses"`
}

// RemoveReply lists the peers whose addresses were taken over.
type RemoveReply struct {
	Removed []Removed `json:"removed"`
}

// Removed is one dead peer whose ranges were taken over.
type Removed struct {
	Peer      string  `json:"peer"`
	Addresses float64 `json:"addresses"`
	// Unknown reports that no peer of that name owned addresses or had a vote, nor was removed
	// before.
	Unknown bool `json:"unknown,omitempty"`
}

// Attachment is one container, or the host's own bridge, with its addresses.
type Attachment struct {
	// ID is the owner in the allocator: the id of a container of Docker's,
	// "netns:INODE", "cni:NETWORK:CONTAINER:INTERFACE", or Exposed.
	ID string `json:"id"`
	// Name of a container of Docker's, or NAMESPACE/POD.
	Name string `json:"name,omitempty"`
	// Netns is the path by which the container was attached, unset for Exposed.
	Netns     string         `json:"netns,omitempty"`
	Interface string         `json:"interface"`
	Port      string         `json:"port,omitempty"` // of the bridge, unset for Exposed
	MAC       string         `json:"mac,omitempty"`
	Addresses []netip.Prefix `json:"addresses"`
	// AllowSpoof: the container may send with other addresses than its own.
	AllowSpoof bool `json:"allowSpoof,omitempty"`
	// Spoofed counts the frames that were dropped because their addresses were not its own.
	Spoofed uint64 `json:"spoofed,omitempty"`
}

// GuardRequest names the port of a container, the host's end of its veth.
type GuardRequest struct {
	Port string `json:"port"`
}

// Exposed is the owner of the addresses of the bridge itself.
const Exposed = "weft:expose"

// Extern is the owner of host names that belong to no container.
const Extern = "weft:extern"

// Empty is a body without content.
type Empty struct{}

// Class sorts errors by what the caller can do about them.
type Class string

// The classes of Error.
const (
	// Failed: the request is right, and could not be carried out.
	Failed Class = "failed"
	// Usage: the request is wrong in any state of the router.
	Usage Class = "usage"
	// Unavailable: the part that carries it out is off or not ready.
	Unavailable Class = "unavailable"
)

// Error is the body of a reply that is not 200. The server writes Text in one
// line.
type Error struct {
	Class Class  `json:"class"`
	Text  string `json:"error"`

	cause error // nil on the side of the client
}

// Errorf returns an error of a class. Format and args are those of fmt.Errorf;
// errors that they wrap with %w can be found with errors.Is and errors.As.
func Errorf(class Class, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &Error{Class: class, Text: err.Error(), cause: err}
}

// Error returns the text.
func (e *Error) Error() string { return e.Text }

// Unwrap returns the cause, nil if the error came over the API.
func (e *Error) Unwrap() error { return e.cause }

// ClassOf returns the class of the first *Error that err wraps, else Failed.
func ClassOf(err error) Class {
	var e *Error
	if errors.As(err, &e) {
		return e.Class
	}
	return Failed
}
