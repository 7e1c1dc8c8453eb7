package kube

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/policy"
	"github.com/weft-net/weft/policy/enginetest"
	"github.com/weft-net/weft/policy/model"
	"github.com/weft-net/weft/policy/policytest"
)

// BenchmarkEngines measures weft and kube-router from the API server to packets: the time until a
// starting engine enforces a large cluster, the time until the change of one pod takes effect, and
// the cost of the first packet of a flow. It does so in clusters of a thousand policies, and
// measures the packet in a cluster of ten policies too. WEFT_RIVALS is the directory of
// kube-router's program.
func BenchmarkEngines(b *testing.B) {
	engines := []string{"weft"}
	router := filepath.Join(os.Getenv("WEFT_RIVALS"), "kube-router")
	if _, err := os.Stat(router); err != nil {
		b.Logf("kube-router is not measured: %v; make bench-policy builds it", err)
	} else {
		engines = append(engines, "kube-router")
	}
	small := policytest.Size{Namespaces: 5, Pods: 50, Policies: 10, Local: 5}
	for b.Loop() {
		for _, name := range engines {
			b.Run(name, func(b *testing.B) {
				start := func(w *enginetest.Wire, url string) func() {
					if name == "weft" {
						return startWeft(b, w, url)
					}
					return startRouter(b, w, url, router)
				}
				r := measureEngine(b, policytest.Cluster, start)
				ten := measureEngine(b, small, start)
				b.ReportMetric(r.start.Seconds(), "s-start")
				b.ReportMetric(float64(r.change.Microseconds())/1e3, "ms-change")
				b.ReportMetric(float64(r.packet.Nanoseconds()), "ns/packet")
				b.ReportMetric(float64(r.packet)/float64(ten.packet), "1000/10-policies")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

type engineResult struct{ start, change, packet time.Duration }

// measureEngine measures one engine in one cluster. Pod 0 is local. It accepts UDP from pods of
// its namespace with the label app-0 only.
func measureEngine(b *testing.B, size policytest.Size, start func(*enginetest.Wire, string) func()) (r engineResult) {
	w := enginetest.NewWire(b, 1)
	enginetest.OnOneCPU(b)
	api := enginetest.NewAPI(policytest.LargeObjects(size))
	stop := start(w, serveAPI(b, w, api))
	defer stop()

	n := size.Namespaces
	to := policytest.LargePod(size, 0).Addrs[0]
	friend, stranger := 5*n, 2*n // with the labels app-0 and app-2
	flow := func(from int) model.Flow {
		return model.Flow{Src: policytest.LargePod(size, from).Addrs[0], Dst: to, Protocol: model.UDP, Port: 9999}
	}
	began := time.Now()
	sent := uint32(0)
	// passes sends the first packet of a flow, and then a mark, which netfilter does not filter.
	// It reports whether the packet arrived.
	passes := func(f model.Flow) bool {
		sent++
		p := enginetest.Probe{Flow: f, Sport: uint16(1024 + sent%60000), ID: sent<<8 | 0xa5}
		if err := unix.Send(w.Ends[0].FD, p.Frame(w.Ends[0].MAC, w.Ends[1].MAC), 0); err != nil {
			b.Fatal(err)
		}
		w.Settle(b, sent)
		return w.Ends[1].Got[p.ID]
	}
	until := func(what string, ok func() bool) time.Duration {
		from := time.Now()
		for !ok() {
			if time.Since(from) > 2*time.Minute {
				b.Fatalf("%s: not within 2 minutes", what)
			}
		}
		return time.Since(from)
	}
	until("the cluster is enforced", func() bool { return !passes(flow(stranger)) && passes(flow(friend)) })
	r.start = time.Since(began)

	var changes []time.Duration
	for i := range 6 {
		p := policytest.LargePodObject(size, stranger)
		allowed := i%2 == 0
		if allowed {
			p.Labels["app"] = "app-0"
		}
		api.SetPod(p)
		changes = append(changes, until("a pod's change", func() bool { return passes(flow(stranger)) == allowed }))
	}
	slices.Sort(changes)
	r.change = changes[len(changes)/2]
	r.packet = w.Time(b, flow(friend))
	return r
}

// serveAPI serves an API server on the wire's host and returns its URL.
func serveAPI(b *testing.B, w *enginetest.Wire, api *enginetest.API) string {
	var l net.Listener
	err := netdev.Do(w.Host, func() (err error) {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		l, err = net.Listen("tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 0).String())
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	server := &http.Server{Handler: api}
	go server.Serve(l)
	b.Cleanup(func() { server.Close() })
	return "http://" + l.Addr().String()
}

func startWeft(b *testing.B, w *enginetest.Wire, url string) func() {
	dial := func(ctx context.Context, network, addr string) (c net.Conn, err error) {
		err = netdev.Do(w.Host, func() (err error) {
			var d net.Dialer
			c, err = d.DialContext(ctx, network, addr)
			return err
		})
		return c, err
	}
	client, err := kubernetes.NewForConfig(&rest.Config{Host: url, Dial: dial, QPS: 100, Burst: 100})
	if err != nil {
		b.Fatal(err)
	}
	var e *policy.Engine
	if err := netdev.Do(w.Host, func() (err error) { e, err = policy.New(policy.Config{Node: policytest.Node}); return err }); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 2)
	go func() { ended <- e.Run(ctx) }()
	go func() {
		ended <- feed(ctx, informers.NewSharedInformerFactory(client, 0), nil, e, slog.New(slog.DiscardHandler))
	}()
	return func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				b.Error(err)
			}
		}
		e.Close()
	}
}

func startRouter(b *testing.B, w *enginetest.Wire, url, program string) func() {
	cmd := exec.Command(program, "--run-firewall=true", "--run-router=false", "--run-service-proxy=false", "--run-loadbalancer=false",
		"--master="+url, "--hostname-override="+policytest.Node, "--service-cluster-ip-range=10.96.0.0/12",
		"--health-port=0", "--metrics-port=0", "--iptables-sync-period=1h")
	log, err := os.Create(filepath.Join(b.TempDir(), "log"))
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := netdev.Do(w.Host, cmd.Start); err != nil {
		b.Fatal(err)
	}
	return func() {
		cmd.Process.Kill()
		_ = cmd.Wait()
		if b.Failed() {
			text, _ := os.ReadFile(log.Name())
			fmt.Println(string(text[:min(len(text), 5000)]))
		}
	}
}
