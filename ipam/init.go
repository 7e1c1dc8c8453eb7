package ipam

import (
	"fmt"
	"slices"
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

// ParseInit reads consensus, consensus=N, observer or seed=NAME,... . Without a
// number Expect is 0, for the caller to fill in.
func ParseInit(s string) (Init, error) {
	mode, value, hasValue := strings.Cut(s, "=")
	switch {
	case mode == "consensus" && !hasValue:
		return Init{Mode: Consensus}, nil
	case mode == "consensus":
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 || n >= 1<<16 {
			return Init{}, fmt.Errorf("%q: want the number of peers at the beginning, 1 to 65535, as consensus=3", s)
		}
		return Init{Mode: Consensus, Expect: n}, nil
	case mode == "observer" && !hasValue:
		return Init{Mode: Observer}, nil
	case mode == "seed":
		in := Init{Mode: Seed}
		for name := range strings.SplitSeq(value, ",") {
			n, err := peer.ParseName(strings.TrimSpace(name))
			if err != nil {
				return Init{}, fmt.Errorf("%q: %w", s, err)
			}
			if slices.Contains(in.Seeds, n) {
				return Init{}, fmt.Errorf("%q: peer %s is named twice", s, n)
			}
			in.Seeds = append(in.Seeds, n)
		}
		return in, nil
	}
	return Init{}, fmt.Errorf("%q: want consensus[=N], seed=NAME,... or observer", s)
}
