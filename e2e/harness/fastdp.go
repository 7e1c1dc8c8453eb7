package harness

import (
	"testing"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/testbed"
)

// Link returns the connection of a host to another, by nickname.
func Link(t *testing.T, lab *testbed.Lab, host int, to string) api.Connection {
	t.Helper()
	for _, c := range Report(t, lab, host).Router.Connections {
		if c.NickName == to && c.State == api.StateEstablished {
			return c
		}
	}
	return api.Connection{}
}

// FastdpBetween waits until both ends use the fast datapath.
func FastdpBetween(t *testing.T, lab *testbed.Lab, a, b int) {
	t.Helper()
	Eventually(t, "fast datapath", func() bool {
		return Link(t, lab, a, At(b, "").String()).Kind == "fastdp" && Link(t, lab, b, At(a, "").String()).Kind == "fastdp"
	})
}
