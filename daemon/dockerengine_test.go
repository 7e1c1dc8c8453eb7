package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-net/weft/docker"
)

// slowAddresses is an allocator that refuses each claim once refuse is closed.
type slowAddresses struct {
	*fakeAddresses
	claims atomic.Int32
	refuse chan struct{}
}

func (s *slowAddresses) Claim(context.Context, string, netip.Prefix) error {
	s.claims.Add(1)
	<-s.refuse
	return errors.New("there is no ring")
}

// While a container waits for its addresses no other goroutine attaches the same run of
// it, but one may attach its next run.
func TestOneGoroutineAttachesARunOfAContainer(t *testing.T) {
	t.Parallel()
	slow := &slowAddresses{fakeAddresses: newFakeAddresses(), refuse: make(chan struct{})}
	names, log := newTestNames(), slog.New(slog.DiscardHandler)
	containers := newDockerContainers(attachConfig{store: openStore(t), addresses: addresses{slow}, names: names, bridge: "weft", mtu: DefaultMTU, guard: new(spoofGuard), log: log})
	made, err := newDockerEngine(DockerConfig{Host: "unix://" + filepath.Join(t.TempDir(), "docker.sock")}, containers, names)
	if err != nil {
		t.Fatal(err)
	}
	e, id := made.(*dockerEngine), strings.Repeat("c", 64)
	want := []netip.Prefix{netip.MustParsePrefix("10.32.0.5/16")}
	if err := containers.put(id, attachment{Netns: "/proc/0/ns/net", Port: "vethwepl1", Addresses: want, Requested: want}); err != nil {
		t.Fatal(err)
	}
	run := func(since string) *docker.Container {
		return &docker.Container{ID: id, Name: "web", Running: true, PID: os.Getpid(), Since: since}
	}
	e.Running(t.Context(), run("first"))
	e.Running(t.Context(), run("first")) // docker was started again
	for range 3 {
		e.sweep(t.Context(), time.Now())
	}
	e.Running(t.Context(), run("second"))
	e.sweep(t.Context(), time.Now())
	close(slow.refuse)
	e.working.Wait()
	if n := slow.claims.Load(); n != 2 {
		t.Errorf("two runs were attached %d times", n)
	}
	e.sweep(t.Context(), time.Now())
	e.working.Wait()
	if n := slow.claims.Load(); n != 3 {
		t.Errorf("after a failure another try makes %d", n)
	}
}
