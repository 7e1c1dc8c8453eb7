// Package seed gives random tests a seed that is logged and can be set, so that a
// failed run can be repeated.
package seed

import (
	"flag"
	"math/rand/v2"
	"testing"
)

var given = flag.Uint64("seed", 0, "seed of random tests, from the log of an earlier run; 0 chooses a random one")

// New returns a seed and logs it: that of the flag -seed, or a random one.
func New(t testing.TB) uint64 {
	t.Helper()
	n := *given
	if n == 0 {
		n = rand.Uint64()
	}
	t.Logf("seed %d; repeat with -seed=%d", n, n)
	return n
}

// Rand returns a source of random numbers with New's seed.
func Rand(t testing.TB) *rand.Rand {
	t.Helper()
	return rand.New(rand.NewPCG(New(t), 0))
}
