package daemon

import (
	"net/netip"
	"slices"

	"github.com/weft-net/weft/internal/api"
)

// attachment is the record of one container.
type attachment struct {
	Netns string `json:"netns"` // the path it was attached by
	// Port is the host's end of its veth pair. Its name is random, so a link with
	// that name proves that the container still runs, even if Netns leads elsewhere.
	// Empty: the router ended before it had attached the container.
	Port      string         `json:"port"`
	MAC       string         `json:"mac"`
	Addresses []netip.Prefix `json:"addresses"`
	// Requested are the addresses that the user asked for by value.
	Requested        []netip.Prefix `json:"requested,omitempty"`
	Names            hostNames      `json:"names,omitempty"`
	NoMulticastRoute bool           `json:"noMulticastRoute,omitempty"`
	AllowSpoof       bool           `json:"allowSpoof,omitempty"` // see api.AttachRequest
	// Docker is set for Docker's containers only.
	Docker dockerRecord `json:"docker,omitzero"`
}

// dockerRecord is the part of a record that only Docker's containers have.
type dockerRecord struct {
	Name         string   `json:"name"`
	WithoutDNS   bool     `json:"withoutDNS,omitempty"`
	RewriteHosts bool     `json:"rewriteHosts,omitempty"`
	AddHosts     []string `json:"addHosts,omitempty"`
	// Released is set once the container has not run for a while and its addresses
	// were freed.
	Released bool `json:"released,omitempty"`
}

// isPlugged reports whether the container is attached and still runs.
func (a attachment) isPlugged() bool { return a.Port != "" && linkExists(a.Port) }

// withAddresses returns the record with more addresses, and with those that the
// requests name by value among the requested ones.
func (a attachment) withAddresses(more []netip.Prefix, requests []api.Address) attachment {
	a.Addresses, a.Requested = slices.Clone(a.Addresses), slices.Clone(a.Requested)
	for _, p := range more {
		if !slices.Contains(a.Addresses, p) {
			a.Addresses = append(a.Addresses, p)
		}
	}
	for _, r := range requests {
		if r.Kind == api.Exactly && !slices.Contains(a.Requested, r.Prefix) {
			a.Requested = append(a.Requested, r.Prefix)
		}
	}
	return a
}

// place is a container and its network namespace.
type place struct {
	owner string // in the allocators and in the records
	netns string // path; empty: the container does not run
	name  string // of a container of Docker's, else empty
}

// String names the place for errors.
func (p place) String() string {
	if p.name != "" {
		return "container " + p.name
	}
	return p.netns
}
