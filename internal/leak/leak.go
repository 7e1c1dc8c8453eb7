// Package leak fails a run of tests that leaves goroutines or file descriptors
// behind. A package whose tests make routers, labs or namespaces calls it in
// TestMain:
//
//	func TestMain(m *testing.M) { os.Exit(leak.Run(m)) }
package leak

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// settle is how long goroutines may take to end and descriptors to be closed: a killed child, or a
// connection that the other end closes, ends a moment after the test. On a loaded machine the
// kernel takes seconds to end a router with programs and maps.
const settle = 15 * time.Second

// Run runs the tests and returns the exit code: that of the tests, or 1 if they
// passed and left something behind, which it prints.
func Run(m *testing.M) int {
	before := descriptors()
	ignore := goleak.IgnoreCurrent()
	code := m.Run()
	if code != 0 {
		return code // what a failed test left is no news
	}
	deadline := time.Now().Add(settle)
	for {
		err := goleak.Find(ignore, goleak.IgnoreAnyFunction("os/signal.loop")) // waits for a while
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			fmt.Fprintln(os.Stderr, "tests left goroutines behind:", err)
			return 1
		}
	}
	for ; ; time.Sleep(10 * time.Millisecond) {
		left := newOnes(before, descriptors())
		if len(left) == 0 {
			return 0
		}
		if time.Now().After(deadline) {
			fmt.Fprintf(os.Stderr, "tests left %d descriptors behind: %s\n", len(left), strings.Join(left, ", "))
			return 1
		}
	}
}

// descriptors lists what the open descriptors of this process lead to, but not the
// poller of the Go runtime and the descriptor that the listing itself takes.
func descriptors() (all []string) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || strings.HasPrefix(to, "anon_inode:[event") {
			continue
		}
		all = append(all, to)
	}
	slices.Sort(all)
	return all
}

// newOnes returns the entries of after that are not in before, counting those that
// are equal.
func newOnes(before, after []string) (left []string) {
	had := make(map[string]int)
	for _, to := range before {
		had[to]++
	}
	for _, to := range after {
		if had[to]--; had[to] < 0 {
			left = append(left, to)
		}
	}
	return left
}
