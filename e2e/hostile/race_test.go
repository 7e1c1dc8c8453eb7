//go:build race

package hostile

// raced says that the race detector is on, which needs a multiple of memory and time.
const raced = true
