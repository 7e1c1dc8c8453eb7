// Package seed gives random tests what they begin with, so that a run that failed
// can be repeated.
package seed

import (
	"flag"
	"math/rand/v2"
	"testing"
)

var given = flag.Uint64("seed", 0, "what random tests begin with, as one has logged it; 0 takes another each time")

// New returns a seed and logs it. It is that of the flag -seed, or another each time.
func New(t testing.TB) uint64 {
	t.Helper()
	n := *given
	if n == 0 {
		n = rand.Uint64()
	}
	t.Logf("seed %d, which -seed gives again", n)
	return n
}

// Rand returns a source of random numbers that begins with New's seed.
func Rand(t testing.TB) *rand.Rand {
	t.Helper()
	return rand.New(rand.NewPCG(New(t), 0))
}
