package proxy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/weft-net/weft/internal/api"
)

// Variable is the environment variable that requests addresses for a container: the
// word none, or addresses as weft attach takes them, separated by blanks or commas.
// The empty string requests one address of the default subnet.
const Variable = "WEFT_CIDR"

// AllowSpoofVariable is the environment variable that lets a container send with other
// addresses than its own; see plugin.AllowSpoofOption. Only the request to create the container
// may set it, not its image.
const AllowSpoofVariable = "WEFT_ALLOW_SPOOF"

// mayAllowSpoof returns the value of AllowSpoofVariable in the environment of a request. Without a
// value it is on.
func mayAllowSpoof(env []string) (bool, error) {
	value, given := lookupEnv(env, AllowSpoofVariable)
	if !given || value == "" {
		return given, nil
	}
	on, err := strconv.ParseBool(value)
	if err != nil {
		return false, fmt.Errorf("%s=%.40q: want true or false", AllowSpoofVariable, value)
	}
	return on, nil
}

// weaveVariable is Weave's name of Variable, which is accepted too.
const weaveVariable = "WEAVE_CIDR"

// addressRequest is what a container asks for: a network, its address there and
// further addresses on the same interface.
type addressRequest struct {
	subnet netip.Prefix // of the network
	addr   netip.Addr   // in subnet; the zero Addr: any
	more   []string     // further addresses, as weft attach takes them
}

// requestedAddresses returns the addresses that the environment of a container
// requests, nil for none. Given reports whether the environment has the variable.
// Subnet is the default subnet, invalid if there is none.
func requestedAddresses(env []string, subnet netip.Prefix) (want *addressRequest, given bool, err error) {
	value, given := lookupEnv(env, Variable)
	if !given {
		value, given = lookupEnv(env, weaveVariable)
	}
	if !given || value == "none" {
		return nil, given, nil
	}
	words := strings.FieldsFunc(value, func(r rune) bool { return r == ' ' || r == ',' || r == '\t' })
	if len(words) == 0 {
		words = []string{"net:default"}
	}
	if len(words) > maxAddresses {
		return nil, true, fmt.Errorf("%s has %d addresses; the maximum is %d", Variable, len(words), maxAddresses)
	}
	seen := make(map[api.Address]bool)
	for _, word := range words {
		a, err := api.ParseAddress(word)
		if err != nil {
			return nil, true, fmt.Errorf("%s: %w", Variable, err)
		}
		if seen[a] && a.Kind == api.Exactly {
			return nil, true, fmt.Errorf("%s: address %s is given twice", Variable, word)
		}
		seen[a] = true
		if a.Kind == api.FromDefault && !subnet.IsValid() {
			return nil, true, fmt.Errorf("%s: %s: this router was launched without an address range", Variable, word)
		}
		if want != nil || a.Kind != api.FromDefault && !a.Prefix.Addr().Is4() {
			continue
		}
		// The engine accepts IPv6 only together with IPv4, so it gets this address.
		want = &addressRequest{subnet: a.Prefix.Masked(), more: without(words, word)}
		switch a.Kind {
		case api.FromDefault:
			want.subnet = subnet
		case api.Exactly:
			want.addr = a.Prefix.Addr()
		}
	}
	if want == nil {
		return nil, true, fmt.Errorf("%s: %s: docker needs an IPv4 address in addition to IPv6 addresses", Variable, value)
	}
	return want, true, nil
}

// lookupEnv returns the value of a variable. If it is set more than once the last
// one counts, as in a process.
func lookupEnv(env []string, name string) (value string, given bool) {
	for _, kv := range env {
		if k, v, _ := strings.Cut(kv, "="); k == name {
			value, given = v, true
		}
	}
	return value, given
}

// without returns the words without the first occurrence of word.
func without(words []string, word string) []string {
	i := slices.Index(words, word)
	return slices.Concat(words[:i], words[i+1:])
}

// maxAddresses bounds how many addresses one container may request.
const maxAddresses = 64
