package nstest

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// Overflows returns how many packets the kernel has dropped since boot because the
// backlog queue of a processor was full. All namespaces share these queues, so the
// traffic of one test may make another lose packets.
func Overflows(t testing.TB) (n uint64) {
	t.Helper()
	b, err := os.ReadFile("/proc/net/softnet_stat")
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(b)) { // one line per processor
		const dropped = 1 // column
		if columns := strings.Fields(line); len(columns) > dropped {
			k, err := strconv.ParseUint(columns[dropped], 16, 64)
			if err != nil {
				t.Error(err)
			}
			n += k
		}
	}
	return n
}
