package ipam

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/weft-net/weft/mesh/peer"
)

// Mode is how the first ring is made.
type Mode int

// The modes.
const (
	Consensus Mode = iota // by an election in which this peer votes
	Observer              // by an election that this peer may start but in which it has no vote
	Seed                  // from a list of names that is the same on all peers
)

// Init configures how the first ring is made.
type Init struct {
	Mode Mode
	// Expect is the largest number of voters, for Consensus and Observer.
	Expect int
	// Seeds are the peers that the first ring is divided among, for Seed.
	Seeds []peer.Name
}

// ParseInit reads the value of --ipalloc-init: "consensus", "consensus=N",
// "observer" or "seed=NAME,...". expect is the number of voters if s gives none.
// An empty s means consensus.
func ParseInit(s string, expect int) (Init, error) {
	kind, arg, hasArg := strings.Cut(s, "=")
	switch kind {
	case "", "consensus":
		if !hasArg {
			return Init{Mode: Consensus, Expect: max(expect, 1)}, nil
		}
		n, err := strconv.Atoi(arg)
		if err != nil || n < 1 || n >= 1<<16 {
			return Init{}, fmt.Errorf("address initialisation %q: want consensus=N with a number of peers N from 1 to 65535", s)
		}
		return Init{Mode: Consensus, Expect: n}, nil
	case "observer":
		if hasArg {
			return Init{}, fmt.Errorf("address initialisation %q: observer takes no value", s)
		}
		return Init{Mode: Observer, Expect: 1}, nil
	case "seed":
		in := Init{Mode: Seed}
		for _, f := range strings.Split(arg, ",") {
			n, err := peer.ParseName(strings.TrimSpace(f))
			if err != nil {
				return Init{}, fmt.Errorf("address initialisation %q: %w", s, err)
			}
			in.Seeds = append(in.Seeds, n)
		}
		return in, nil
	}
	return Init{}, fmt.Errorf("address initialisation %q: want consensus, consensus=N, seed=NAME,... or observer", s)
}
