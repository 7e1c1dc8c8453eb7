package cmd

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/internal/poll"
)

// Tests in files lab_*_test.go run real routers in labs. Each lab has a random
// name, so several may run at once, and goes with its test.

// timeout is how long a test waits for what should come soon; slow machines
// with the race detector need a multiple of what users see.
const timeout = 30 * time.Second

// labTimeout bounds one step of a test, convergeTimeout the start of a lab.
const (
	labTimeout      = 60 * time.Second
	convergeTimeout = 60 * time.Second
)

// slack is what a busy machine may add to a time that is promised.
const slack = 5 * time.Second

func labName() string {
	var b [4]byte
	_, _ = rand.Read(b[:])
	return "e" + hex.EncodeToString(b[:])
}

// staleLab is the age after which a lab of a test belongs to no running one.
const staleLab = time.Hour

var testLab = regexp.MustCompile(`^[et][0-9a-f]{8}$`)

// sweepLabs takes down what killed runs of tests left.
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

// newLab makes hosts without routers.
func newLab(t testing.TB, c testbed.Config) *testbed.Lab {
	t.Helper()
	nstest.RequireRoot(t)
	sweepLabs(t)
	c.Name = labName()
	if c.Topology == "" {
		c.Topology = testbed.Full
	}
	lab, err := testbed.Create(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			showLogs(t, lab)
		}
		if err := testbed.Down(c.Name); err != nil {
			t.Error(err)
		}
	})
	return lab
}

// upLab makes a lab and waits until it has converged.
func upLab(t testing.TB, c testbed.Config) *testbed.Lab {
	t.Helper()
	lab := newLab(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), convergeTimeout)
	defer cancel()
	if err := lab.Up(ctx); err != nil {
		t.Fatal(err)
	}
	return lab
}

// showLogs prints the end of the log of each router.
func showLogs(t testing.TB, lab *testbed.Lab) {
	const most = 6 << 10
	for n := 1; n <= lab.Hosts; n++ {
		b, err := os.ReadFile(lab.LogFile(n))
		if err != nil {
			continue
		}
		t.Logf("log of h%d:\n%s", n, b[max(0, len(b)-most):])
	}
}

func launch(t *testing.T, lab *testbed.Lab, host int, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), labTimeout)
	defer cancel()
	if err := lab.Launch(ctx, host, args...); err != nil {
		t.Fatal(err)
	}
}

func converge(t *testing.T, lab *testbed.Lab) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), convergeTimeout)
	defer cancel()
	if err := lab.WaitConverged(ctx); err != nil {
		t.Fatal(err)
	}
}

// on runs weft on a host of a lab and wants it to succeed.
func on(t *testing.T, lab *testbed.Lab, host int, args ...string) string {
	t.Helper()
	code, out := try(t, lab, host, args...)
	if code != exitOK {
		t.Fatalf("h%d# weft %s: exit code %d\n%s", host, strings.Join(args, " "), code, out)
	}
	return out
}

// try runs weft on a host of a lab and returns its exit code and its output.
func try(t *testing.T, lab *testbed.Lab, host int, args ...string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*labTimeout)
	defer cancel()
	place := testbed.Place{Host: host}
	cmd := lab.Command(ctx, place, "weft", args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := lab.Run(place, cmd)
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		return exit.ExitCode(), out.String()
	}
	if err != nil {
		t.Fatalf("h%d# weft %s: %v", host, strings.Join(args, " "), err)
	}
	return exitOK, out.String()
}

// addContainer attaches a container and returns its addresses.
func addContainer(t *testing.T, lab *testbed.Lab, host int, name string, addrs ...string) []netip.Prefix {
	t.Helper()
	var list []api.Address
	for _, s := range addrs {
		a, err := api.ParseAddress(s)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, a)
	}
	ctx, cancel := context.WithTimeout(t.Context(), labTimeout)
	defer cancel()
	got, err := lab.AddContainer(ctx, testbed.Place{Host: host, Container: name}, list)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// reach wants an answer to a ping from a place within timeout.
func reach(t *testing.T, lab *testbed.Lab, from testbed.Place, to netip.Addr) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	if _, err := testbed.Ping(ctx, lab.Netns(from), to); err != nil {
		t.Fatalf("from %s: %v", from, err)
	}
}

// answered wants an answer to one ping: late is not lost, and what the kernel dropped
// as its queues were full may have been for others.
func answered(t *testing.T, p *testbed.Pinger, size int) error {
	t.Helper()
	before := nstest.Overflows(t)
	_, err := p.Once(size, timeout)
	if err != nil && nstest.Overflows(t) != before {
		t.Logf("not counted, as the kernel's queues were full: %v", err)
		return nil
	}
	return err
}

// within runs f in the network namespace of a host or container.
func within(t *testing.T, lab *testbed.Lab, place testbed.Place, f func() error) {
	t.Helper()
	if err := netdev.Do(lab.Netns(place), f); err != nil {
		t.Fatal(err)
	}
}

// report asks a router for its state.
func report(t *testing.T, lab *testbed.Lab, host int) *api.Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), labTimeout)
	defer cancel()
	r, err := api.NewClient(lab.Socket(host)).Report(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// eventually wants a condition to come true within timeout.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if err := poll.Until(timeout, 50*time.Millisecond, poll.True(ok)); err != nil {
		t.Fatalf("%s: %v after %v", what, err, timeout)
	}
}

func at(host int, name string) testbed.Place { return testbed.Place{Host: host, Container: name} }

// hxServer measures towards a place.
type hxServer = lab.Server

// hxServe starts a server of package traffic in a place, and stops it with the test.
func hxServe(t *testing.T, l *testbed.Lab, place testbed.Place, addr netip.Addr) *hxServer {
	t.Helper()
	s, err := lab.Serve(t.Context(), l, place, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}
