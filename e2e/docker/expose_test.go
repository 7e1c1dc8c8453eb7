//go:build docker

package docker

import (
	"errors"
	"testing"
)

// An exposed host does not route between the subnets of containers, nor lets containers in
// that are not attached. It reaches them all itself.
func TestExposeKeepsSubnetsApart(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 1)[0]
	for _, name := range []string{"one", "two", "plain"} {
		h.run(t, "--name", name)
	}
	h.docker(t, "network", "create", "other")
	h.run(t, "--name", "elsewhere", "--net", "other")
	h.weft(t, "attach", "10.40.1.34/24", "one")
	h.weft(t, "attach", "10.40.2.34/24", "two")
	h.weft(t, "expose", "10.40.1.101/24", "10.40.2.101/24")
	for _, to := range []string{"10.40.1.34", "10.40.2.34"} {
		h.must(t, "ping", "-c", "1", "-w", "5", to)
	}
	h.ping(t, "one", "10.40.1.101")
	h.noPing(t, "one", "10.40.2.34")
	h.noPing(t, "plain", "10.40.2.34")
	h.noPing(t, "elsewhere", "10.40.1.34")

	// So is a network that comes later.
	h.docker(t, "network", "create", "later")
	h.run(t, "--name", "late", "--net", "later")
	eventually(t, "a new network is kept out", func() error {
		if h.answers(t, "late", "10.40.1.34") {
			return errors.New("10.40.1.34 answers late")
		}
		return nil
	})
}
