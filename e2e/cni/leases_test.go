package cni

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
)

// signal sends a signal to the router.
func (h *cniHost) signal(s unix.Signal) {
	h.t.Helper()
	pid, ok := h.lab.RouterPID(h.host)
	if !ok {
		h.t.Fatal("no router runs")
	}
	if err := unix.Kill(pid, s); err != nil {
		h.t.Fatal(err)
	}
}

// A request whose caller died before the router read it is undone.
func TestCNIAddOfADeadCallerIsUndone(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 1})
	h := newCNIHost(t, lab, 1, "1.0.0", nil)
	h.mustAdd(h.pod("first")) // there is a ring
	body, err := json.Marshal(api.LeaseRequest{Owner: "cni:pods:dead:eth0"})
	if err != nil {
		t.Fatal(err)
	}
	h.signal(unix.SIGSTOP)
	for range 5 {
		c, err := net.Dial("unix", lab.Socket(1))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(c, "POST /lease HTTP/1.1\r\nHost: weft\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	h.signal(unix.SIGCONT)
	h.mustAdd(h.pod("second")) // behind the others in the queue of the socket
	harness.Eventually(t, "nothing is left of the dead caller", func() bool { return len(h.leases()) == 2 })
}

// DEL wins over an ADD of the same container that is at work, in whatever order the router
// handles them.
func TestCNIDelWinsOverAddAtWork(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 1})
	h := newCNIHost(t, lab, 1, "1.0.0", nil)
	h.mustAdd(h.pod("first"))
	for i := range 3 {
		rc := h.pod(fmt.Sprint("pod", i))
		h.signal(unix.SIGSTOP)
		added, deleted := make(chan error, 1), make(chan error, 1)
		go func() { _, err := h.add(rc); added <- err }()
		harness.Eventually(t, "the ADD is at work", func() bool { return h.clients() >= 1 })
		go func() { deleted <- h.del(rc) }()
		harness.Eventually(t, "the DEL is at work", func() bool { return h.clients() >= 2 })
		h.signal(unix.SIGCONT)
		adding := <-added
		if err := <-deleted; err != nil {
			t.Errorf("DEL: %v", err)
		}
		if adding == nil {
			// The ADD had ended before the DEL: then the DEL undid it.
			t.Log("the ADD came first")
		}
		harness.Eventually(t, "no lease of the container is left", func() bool { return len(h.leases()) == 1 })
		if err := netdev.Do(rc.NetNS, func() error {
			if _, err := net.InterfaceByName("eth0"); err == nil {
				return fmt.Errorf("eth0 is left")
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		// The same id may come back.
		h.mustAdd(rc)
		if err := h.del(rc); err != nil {
			t.Error(err)
		}
	}
}

// clients returns how many connections to the router's socket there are.
func (h *cniHost) clients() (n int) {
	h.t.Helper()
	err := netdev.Do(h.lab.Netns(harness.At(h.host, "")), func() error {
		b, err := os.ReadFile("/proc/thread-self/net/unix")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			const listens = "00010000"
			if f := strings.Fields(line); len(f) == 8 && f[7] == h.lab.Socket(h.host) && f[3] != listens {
				n++
			}
		}
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

// Leases are listed by the names of their pods, and a router that lost its state takes them
// from the kernel.
func TestCNILeasesHaveNamesAndSurviveLostState(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 1})
	h := newCNIHost(t, lab, 1, "1.0.0", nil)
	web := h.pod("c1")
	web.Args = [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", "web-0"}}
	r := h.mustAdd(web)
	h.mustAdd(h.pod("c2"))
	addr := r.IPs[0].Address.IP.String()
	shows := func(when string) {
		t.Helper()
		for _, command := range [][]string{{"ps"}, {"status", "ipam"}, {"ps", "shop/web-0"}, {"ps", "c1"}} {
			out := harness.Weft(t, lab, 1, command...)
			if !strings.Contains(out, "shop/web-0") || !strings.Contains(out, addr) {
				t.Errorf("%s: weft %v:\n%s", when, command, out)
			}
		}
		h.wantLeases(2)
	}
	shows("at first")
	if err := lab.Kill(1); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"weft.db", "ipam.db"} {
		if err := os.Remove(filepath.Join(lab.StateDir(1), file)); err != nil {
			t.Fatal(err)
		}
	}
	harness.Launch(t, lab, 1)
	shows("without the state")
	if err := h.check(web); err != nil {
		t.Error(err)
	}
	if err := h.del(web); err != nil {
		t.Error(err)
	}
	h.wantLeases(1)
}

// A request for an address ends with its caller while it waits.
func TestCNIAddThatWaitsEndsWithItsCaller(t *testing.T) {
	t.Parallel()
	lab := harness.New(t, testbed.Config{Hosts: 3})
	harness.Launch(t, lab, 1) // no ring without the others
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := api.NewClient(lab.Socket(1)).Lease(ctx, api.LeaseRequest{Owner: "cni:pods:c1:eth0"})
		ended <- err
	}()
	pending := func() int { return len(harness.Report(t, lab, 1).IPAM.PendingAllocates) }
	harness.Eventually(t, "the request waits", func() bool { return pending() == 1 })
	cancel()
	if err := <-ended; err == nil {
		t.Error("an address is given without a ring")
	}
	harness.Eventually(t, "the request has ended", func() bool { return pending() == 0 })
}
