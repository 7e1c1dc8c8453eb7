// Package harness is what the end-to-end tests share: labs of real routers, and the
// means to look at them.
//
// Each lab has a random name and is removed with its test, so several tests, and
// several runs of the tests, may go on at the same time. The test binary is weft
// itself when a lab starts it, so a package that uses a lab calls Main in TestMain.
package harness

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/cmd"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/internal/poll"
)

// Timeout bounds waits for what users see within a second or two: a slow machine
// with the race detector needs a multiple of that.
var Timeout = 30 * time.Second * slowness

// StepTimeout bounds one step of a test, ConvergeTimeout the start of a lab.
var (
	StepTimeout     = 60 * time.Second * slowness
	ConvergeTimeout = 60 * time.Second * slowness
)

// Slack is what a busy machine may add to a promised time. It is less than the ten seconds after
// which routers look at everything, whatever was reported to them.
var Slack = min(5*slowness, 8) * time.Second

// slowness is how much more time for things that only end hung tests there is on this machine.
// An emulated processor is ten times as slow as this one or more: a launch with a password takes
// five to fifteen seconds there.
var slowness = func() time.Duration {
	if emulated() {
		return 5
	}
	return 1
}()

// emulated reports whether the processor is emulated, as in make test-vm without KVM.
func emulated() bool {
	b, err := os.ReadFile("/proc/cpuinfo")
	return err == nil && bytes.Contains(b, []byte("QEMU TCG"))
}

// Name returns a random name for a lab.
func Name() string {
	var b [4]byte
	_, _ = rand.Read(b[:])
	return "e" + hex.EncodeToString(b[:])
}

// staleLab is the age after which a lab of a test belongs to no running one.
const staleLab = time.Hour

var testLab = regexp.MustCompile(`^[et][0-9a-f]{8}$`)

// sweepLabs removes the labs that killed runs of tests left.
var sweepLabs = func() func(t testing.TB) {
	var once sync.Once
	return func(t testing.TB) {
		once.Do(func() {
			labs, err := testbed.List()
			if err != nil {
				t.Error(err)
			}
			for _, l := range labs {
				info, err := os.Stat("/run/weft/lab/" + l.Name)
				if testLab.MatchString(l.Name) && err == nil && time.Since(info.ModTime()) > staleLab {
					if err := testbed.Down(l.Name); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
}()

// New makes hosts without routers.
func New(t testing.TB, c testbed.Config) *testbed.Lab {
	t.Helper()
	nstest.RequireRoot(t)
	sweepLabs(t)
	c.Name = Name()
	if c.Topology == "" {
		c.Topology = testbed.Full
	}
	l, err := testbed.Create(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			showLogs(t, l)
		}
		if err := testbed.Down(c.Name); err != nil {
			t.Error(err)
		}
	})
	return l
}

// Up makes a lab and waits until it has converged.
func Up(t testing.TB, c testbed.Config) *testbed.Lab {
	t.Helper()
	l := New(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), ConvergeTimeout)
	defer cancel()
	if err := l.Up(ctx); err != nil {
		t.Fatal(err)
	}
	return l
}

// showLogs prints the end of the log of each router.
func showLogs(t testing.TB, l *testbed.Lab) {
	const most = 6 << 10
	for n := 1; n <= l.Hosts; n++ {
		b, err := os.ReadFile(l.LogFile(n))
		if err != nil {
			continue
		}
		t.Logf("log of h%d:\n%s", n, b[max(0, len(b)-most):])
	}
}

// Launch starts the router of a host.
func Launch(t *testing.T, l *testbed.Lab, host int, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), StepTimeout)
	defer cancel()
	if err := l.Launch(ctx, host, args...); err != nil {
		t.Fatal(err)
	}
}

// Converge waits until every host sees all others and has a route to each.
func Converge(t *testing.T, l *testbed.Lab) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), ConvergeTimeout)
	defer cancel()
	if err := l.WaitConverged(ctx); err != nil {
		t.Fatal(err)
	}
}

// Weft runs weft on a host of a lab and wants it to succeed.
func Weft(t *testing.T, l *testbed.Lab, host int, args ...string) string {
	t.Helper()
	code, out := Try(t, l, host, args...)
	if code != cmd.ExitOK {
		t.Fatalf("h%d# weft %s: exit code %d\n%s", host, strings.Join(args, " "), code, out)
	}
	return out
}

// Try runs weft on a host of a lab and returns its exit code and its output.
func Try(t *testing.T, l *testbed.Lab, host int, args ...string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*StepTimeout)
	defer cancel()
	place := testbed.Place{Host: host}
	c := l.Command(ctx, place, "weft", args...)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := l.Run(place, c)
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		return exit.ExitCode(), out.String()
	}
	if err != nil {
		t.Fatalf("h%d# weft %s: %v", host, strings.Join(args, " "), err)
	}
	return cmd.ExitOK, out.String()
}

// AddContainer attaches a container and returns its addresses.
func AddContainer(t *testing.T, l *testbed.Lab, host int, name string, addrs ...string) []netip.Prefix {
	t.Helper()
	var list []api.Address
	for _, s := range addrs {
		a, err := api.ParseAddress(s)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, a)
	}
	ctx, cancel := context.WithTimeout(t.Context(), StepTimeout)
	defer cancel()
	got, err := l.AddContainer(ctx, testbed.Place{Host: host, Container: name}, list)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// AllowSpoof lets a container send with other addresses than its own, or ends that.
func AllowSpoof(t *testing.T, l *testbed.Lab, place testbed.Place, allow bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), StepTimeout)
	defer cancel()
	if _, err := api.NewClient(l.Socket(place.Host)).Attach(ctx, api.AttachRequest{Netns: l.Netns(place), AllowSpoof: allow}); err != nil {
		t.Fatal(err)
	}
}

// Reach wants an answer to a ping from a place within Timeout.
func Reach(t *testing.T, l *testbed.Lab, from testbed.Place, to netip.Addr) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Timeout)
	defer cancel()
	if _, err := testbed.Ping(ctx, l.Netns(from), to); err != nil {
		t.Fatalf("from %s: %v", from, err)
	}
}

// Answered wants an answer to one ping within Timeout. A ping that is lost while the
// kernel drops packets because a queue is full is not counted.
func Answered(t *testing.T, p *testbed.Pinger, size int) error {
	t.Helper()
	before := nstest.Overflows(t)
	_, err := p.Once(size, Timeout)
	if err != nil && nstest.Overflows(t) != before {
		t.Logf("not counted, as the kernel's queues were full: %v", err)
		return nil
	}
	return err
}

// Within runs f in the network namespace of a host or container.
func Within(t *testing.T, l *testbed.Lab, place testbed.Place, f func() error) {
	t.Helper()
	if err := netdev.Do(l.Netns(place), f); err != nil {
		t.Fatal(err)
	}
}

// Report asks a router for its state.
func Report(t *testing.T, l *testbed.Lab, host int) *api.Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), StepTimeout)
	defer cancel()
	r, err := api.NewClient(l.Socket(host)).Report(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Eventually waits for a condition, for Timeout at most.
func Eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if err := poll.Until(Timeout, 50*time.Millisecond, poll.True(ok)); err != nil {
		t.Fatalf("%s: %v after %v", what, err, Timeout)
	}
}

// At names a place: a host, or a container on it.
func At(host int, name string) testbed.Place { return testbed.Place{Host: host, Container: name} }

// Server answers measurements; see package lab.
type Server = lab.Server

// Serve starts a server in a place and stops it with the test.
func Serve(t *testing.T, l *testbed.Lab, place testbed.Place, addr netip.Addr) *Server {
	t.Helper()
	s, err := lab.Serve(t.Context(), l, place, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

// Shipped builds weft as it ships, without the race detector.
func Shipped(t testing.TB) (exe string) {
	t.Helper()
	exe = filepath.Join(t.TempDir(), "weft")
	c := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", exe, "github.com/weft-net/weft/prog/weft")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build weft: %v\n%s", err, out)
	}
	return exe
}

// WriteFile makes a file that only its owner may read.
func WriteFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Both changes a link of the underlay in both directions.
func Both(t *testing.T, l *testbed.Lab, link [2]int, change func(a, b int, way testbed.Way) error) {
	t.Helper()
	for _, l := range [][2]int{link, {link[1], link[0]}} {
		if err := change(l[0], l[1], testbed.Packets); err != nil {
			t.Fatal(err)
		}
	}
}
