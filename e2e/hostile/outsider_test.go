package hostile

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/cmd"
	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/hostile"
	"github.com/weft-net/weft/internal/lab"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/mesh/peer"
)

// nobody is a user without rights.
const nobody = 65534

// Strangers, containers and users of a host get nothing that members have.
func TestOutsidersGetNothing(t *testing.T) {
	t.Parallel()
	s := newSiege(t)
	s.launch(t)
	t.Run("stranger", s.stranger)
	t.Run("container", s.container)
	t.Run("control API", s.controlAPI)
	t.Run("slow readers", s.slowReaders)
	t.Run("files of others", s.filesOfOthers)
}

// Without the password there is no session, and nobody hears of the stranger.
func (s *siege) stranger(t *testing.T) {
	l := newLiar(t, s.Lab, harness.At(evilHost, ""), hostile.Config{Password: "another password"})
	for host := 1; host <= honest; host++ {
		id := l.identity(peer.Name{})
		if _, _, err := l.dial(testbed.Addr4(host), id); err == nil {
			t.Errorf("h%d makes a session with a wrong password", host)
		}
		if knows(t, s.Lab, host, id.Name.String()) {
			t.Errorf("h%d knows the stranger", host)
		}
		harness.Eventually(t, "the refusal is counted", func() bool {
			return summary(t, s.Lab, host, api.NoLists).Router.HandshakeFailures["password"] > 0
		})
	}
}

// A container does not become a peer, though it knows the password.
func (s *siege) container(t *testing.T) {
	bridge := strings.TrimSpace(harness.Weft(t, s.Lab, 1, "expose"))
	l := newLiar(t, s.Lab, harness.At(1, "c"), hostile.Config{})
	a, err := netip.ParseAddr(bridge)
	if err != nil {
		t.Fatal(err)
	}
	harness.Reach(t, s.Lab, harness.At(1, "c"), a)
	before := summary(t, s.Lab, 1, api.NoLists).Router.HandshakeFailures["address"]
	if _, _, err := l.dial(a, l.identity(peer.Name{})); err == nil {
		t.Error("a container has a session with its host")
	}
	if n := summary(t, s.Lab, 1, api.NoLists).Router.HandshakeFailures["address"]; n <= before {
		t.Error("the refusal is not counted")
	}
	// Nor does it reach the addresses of the control API.
	harness.Within(t, s.Lab, harness.At(1, "c"), func() error {
		if c, err := net.DialTimeout("tcp", netip.AddrPortFrom(a, 6782).String(), 2*time.Second); err == nil {
			c.Close()
			t.Error("a container reaches the status address")
		}
		return nil
	})
}

// A user without rights cannot open the control socket. The status address answers only
// requests for itself, and changes nothing.
func (s *siege) controlAPI(t *testing.T) {
	info, err := os.Stat(s.Socket(1))
	if err != nil {
		t.Fatal(err)
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; info.Mode().Perm()&0o077 != 0 || owner != 0 {
		t.Errorf("the socket is of user %d with the mode %s", owner, info.Mode())
	}
	harness.Within(t, s.Lab, harness.At(1, ""), func() error {
		for _, c := range []struct {
			method, path, host string
			want               int
		}{
			{http.MethodGet, "/status", "localhost:6782", http.StatusOK},
			{http.MethodGet, "/report", "127.0.0.1:6782", http.StatusOK},
			{http.MethodGet, "/report", "rebound.example", http.StatusMisdirectedRequest},
			{http.MethodGet, "/status", "rebound.example:6782", http.StatusMisdirectedRequest},
			{http.MethodPost, "/stop", "localhost:6782", http.StatusNotFound},
			{http.MethodPost, "/attach", "localhost:6782", http.StatusNotFound},
			{http.MethodGet, "/ps", "localhost:6782", http.StatusNotFound},
		} {
			if got, err := ask(c.method, c.path, c.host); err != nil || got != c.want && (c.want != http.StatusNotFound || got != http.StatusMethodNotAllowed) {
				t.Errorf("%s %s of %s: %d, %v; want %d", c.method, c.path, c.host, got, err, c.want)
			}
		}
		return nil
	})
}

// ask sends a request to the status address of the present namespace.
func ask(method, path, host string) (int, error) {
	c, err := net.DialTimeout("tcp", api.DefaultStatusAddr, harness.Timeout)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(harness.Timeout))
	fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", method, path, host)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// Users that read the status again and again, and slowly, exhaust nothing: root is answered
// at once.
func (s *siege) slowReaders(t *testing.T) {
	const readers = 200
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	harness.Within(t, s.Lab, harness.At(1, ""), func() error {
		for i := range readers {
			c, err := net.DialTimeout("tcp", api.DefaultStatusAddr, harness.Timeout)
			if err != nil {
				return err
			}
			conns = append(conns, c)
			if i%4 != 0 { // the others say nothing
				path := []string{"/report", "/metrics", "/status/peers"}[i%3]
				if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path); err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
					return err
				}
			}
		}
		return nil
	})
	start := time.Now()
	harness.Weft(t, s.Lab, 1, "status")
	if took := time.Since(start); took > lab.MaxStatus+harness.Slack {
		t.Errorf("status took %v", took)
	}
	harness.Eventually(t, "another user is answered", func() bool {
		ok := false
		harness.Within(t, s.Lab, harness.At(1, ""), func() error {
			code, err := ask(http.MethodGet, "/status", "localhost")
			ok = err == nil && code == http.StatusOK
			return nil
		})
		return ok
	})
}

// A router uses no state folder that another user can change, and leaves the folder of its
// socket as it is.
func (s *siege) filesOfOthers(t *testing.T) {
	dir := t.TempDir()
	foreign := filepath.Join(dir, "foreign")
	shared := filepath.Join(dir, "shared")
	for path, mode := range map[string]os.FileMode{foreign: 0o755, shared: 0o777 | os.ModeSticky} {
		if err := errors.Join(os.Mkdir(path, 0o700), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(foreign, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	launch := []string{"launch", "--foreground", "--docker-api", "", "--password", password, "--socket", filepath.Join(shared, "weft.sock")}
	if code, out := harness.Try(t, s.Lab, evilHost, append(launch, "--state-dir", foreign)...); code != cmd.ExitFailed || !strings.Contains(out, foreign) {
		t.Errorf("with a state folder of another user: exit code %d, %q", code, out)
	}
	if entries, err := os.ReadDir(foreign); err != nil || len(entries) > 0 {
		t.Errorf("the folder of the other user has %v: %v", entries, err)
	}
	info, err := os.Stat(shared)
	if err != nil || info.Mode().Perm() != 0o777 || info.Mode()&os.ModeSticky == 0 {
		t.Errorf("the shared folder has the mode %v: %v", info, err)
	}
}

// One host opens as many sessions as it can. The others still get theirs, at once.
func TestOneHostCannotTakeAllSessionsOfALab(t *testing.T) {
	t.Parallel()
	s := newSiege(t, "--conn-limit", "20")
	harness.Launch(t, s.Lab, 1)
	l := newLiar(t, s.Lab, harness.At(evilHost, ""), hostile.Config{})
	open := 0
	for range 40 {
		if _, _, err := l.dial(testbed.Addr4(1), l.identity(peer.Name{})); err == nil {
			open++
		}
	}
	if open == 0 {
		t.Fatal("no session could be opened")
	}
	direct := 0
	for _, c := range summary(t, s.Lab, 1, api.NoLists).Router.Connections {
		if strings.HasPrefix(c.Address, testbed.Addr4(evilHost).String()+":") {
			direct++
		}
	}
	if direct > 16 {
		t.Errorf("one source has %d sessions of 20", direct)
	}
	start := time.Now()
	s.launchOthers(t)
	if !linked(t, s.Lab, 1, s.names[1]) || !linked(t, s.Lab, 1, s.names[2]) {
		harness.Eventually(t, "h1 has links with the other hosts", func() bool { return linked(t, s.Lab, 1, s.names[1]) && linked(t, s.Lab, 1, s.names[2]) })
	}
	t.Logf("%d sessions were opened, %d stayed; the others joined within %v", open, direct, time.Since(start))
}

// Strangers who say nothing, and others who try passwords, keep no newcomer out.
func TestNewcomersJoinDuringFloods(t *testing.T) {
	t.Parallel()
	l := harness.New(t, testbed.Config{Hosts: 5, Password: password})
	s, err := lab.NewSiegeOf(t.Context(), l, 3)
	if err != nil {
		t.Fatal(err)
	}
	refused := func() uint64 {
		r := summary(t, l, 1, api.NoLists).Router.HandshakeFailures
		return r["busy"] + r["password"]
	}
	for _, flood := range []string{"silent", "handshakes"} {
		before := refused()
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			sent, err := s.Flood(ctx, flood)
			if err == nil && sent == 0 {
				err = errors.New("nothing was sent")
			}
			ended <- err
		}()
		harness.Eventually(t, "the flood has begun", func() bool { return refused() > before+20 })
		start := time.Now()
		harness.Launch(t, l, 4, testbed.Addr4(1).String())
		harness.Eventually(t, "the newcomer has a link", func() bool {
			return linked(t, l, 1, summary(t, l, 4, api.NoLists).Router.Name)
		})
		t.Logf("%s: the newcomer joined within %v", flood, time.Since(start))
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("%s: the newcomer joined after %v", flood, took)
		}
		harness.Weft(t, l, 4, "stop")
		stop()
		if err := <-ended; err != nil {
			t.Errorf("%s: %v", flood, err)
		}
	}
}
