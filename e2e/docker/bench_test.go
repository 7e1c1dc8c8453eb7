//go:build docker

package docker

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/lab/sandbox"
)

// BenchmarkDockerRun measures docker run -d on one host: without a network, on docker's default
// bridge, on a bridge network of a user, on the network weft, and through the proxy. Each round
// measures each of them once, so that other load on the machine affects all. It reports the
// medians in milliseconds, and the additional cost of weft compared to no network.
func BenchmarkDockerRun(b *testing.B) {
	const rounds = 20
	hs := newBareHosts(b, 1)
	h := hs[0]
	h.startEngine(b)
	h.launch(b, hs)
	h.waitNetwork(b)
	h.docker(b, "network", "create", "users")
	ways := []struct {
		name string
		args []string
	}{
		{"none", []string{"run", "-d", "--net", "none"}},
		{"bridge", []string{"run", "-d"}},
		{"userbridge", []string{"run", "-d", "--net", "users"}},
		{"weft", []string{"run", "-d", "--net", "weft"}},
		{"proxy", []string{"-H", proxySocket, "run", "-d"}},
	}
	took := make(map[string][]time.Duration)
	for range b.N {
		for round := range rounds + 1 {
			for _, w := range ways {
				cmd := h.Command(context.Background(), "docker", append(slices.Clone(w.args), sandbox.Image, "sleep", "1000")...)
				began := time.Now()
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("%s: %v: %s", w.name, err, out)
				}
				if round > 0 { // the first round fills caches
					took[w.name] = append(took[w.name], time.Since(began))
				}
			}
			h.must(b, "sh", "-c", "docker rm -f $(docker ps -q) >/dev/null")
		}
	}
	median := func(name string) float64 {
		d := took[name]
		slices.Sort(d)
		return float64(d[len(d)/2].Microseconds()) / 1000
	}
	for _, w := range ways {
		b.ReportMetric(median(w.name), w.name+"-ms")
	}
	b.ReportMetric(median("weft")-median("none"), "weft-more-ms")
	b.ReportMetric(median("proxy")-median("none"), "proxy-more-ms")
	b.ReportMetric(0, "ns/op")
}
