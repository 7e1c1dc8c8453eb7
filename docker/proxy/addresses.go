package proxy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/api"
)

// Variable is the environment variable by which a container asks for addresses:
// none, or a list of addresses in the forms of weft attach, with blanks or commas
// between; empty for one of the default subnet.
const Variable = "WEFT_CIDR"

// weaveVariable is what it was called there.
const weaveVariable = "WEAVE_CIDR"

// wish is what a container is to have: its address on a network of the engine's
// and more of them on the same interface.
type addressRequest struct {
	subnet netip.Prefix // of the network
	addr   netip.Addr   // there; the zero Addr: any
	more   []string     // in the forms of weft attach
}

// wishOf reads what the environment of a container asks for, nil for nothing.
// Given reports whether it says so itself.
func requestedAddresses(env []string, subnet netip.Prefix) (w *addressRequest, given bool, err error) {
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
		return nil, true, fmt.Errorf("%s has %d addresses; %d are the most", Variable, len(words), maxAddresses)
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
			return nil, true, fmt.Errorf("%s: %s: this router was launched without a range of addresses", Variable, word)
		}
		if w != nil || a.Kind != api.FromDefault && !a.Prefix.Addr().Is4() {
			continue
		}
		// The engine has IPv6 only beside IPv4, so this is the one it is told of.
		w = &addressRequest{subnet: a.Prefix.Masked(), more: without(words, word)}
		switch a.Kind {
		case api.FromDefault:
			w.subnet = subnet
		case api.Exactly:
			w.addr = a.Prefix.Addr()
		}
	}
	if w == nil {
		return nil, true, fmt.Errorf("%s: %s: docker wants an IPv4 address beside those of IPv6", Variable, value)
	}
	return w, true, nil
}

// lookup finds a variable; the last one counts, as in a process.
func lookupEnv(env []string, name string) (value string, given bool) {
	for _, kv := range env {
		if k, v, _ := strings.Cut(kv, "="); k == name {
			value, given = v, true
		}
	}
	return value, given
}

// without returns the words but for the first that is word.
func without(words []string, word string) []string {
	i := slices.Index(words, word)
	return slices.Concat(words[:i], words[i+1:])
}

// maxAddresses bounds how many addresses one container asks for.
const maxAddresses = 64
