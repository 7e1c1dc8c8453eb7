package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/weft-net/weft/internal/api"
)

// The caller of a failed ADD of an IPAM plugin does not call DEL, so addresses must be
// released at once if the bridge cannot get an address as their gateway.
func TestFailedAddReleasesAddresses(t *testing.T) {
	var released atomic.Int32
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"ready":true}`) })
	mux.HandleFunc("POST /lease", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"addresses":["10.32.0.5/12"]}`)
	})
	mux.HandleFunc("POST /release", func(w http.ResponseWriter, r *http.Request) {
		var body struct{ Owner string }
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || body.Owner != "cni:pods:pod:eth0" {
			t.Errorf("release %q: %v", body.Owner, err)
		}
		released.Add(1)
		fmt.Fprint(w, `{"addresses":["10.32.0.5/12"]}`)
	})
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(mux)
	s.Listener = l
	s.Start()
	defer s.Close()
	conf := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"pods","type":"weft-cni","socket":%q}`, socket)
	err = Verbs(IPAMName).Add(&skel.CmdArgs{ContainerID: "pod", IfName: "eth0", StdinData: []byte(conf)})
	if err == nil || released.Load() != 1 {
		t.Errorf("released %d times after %v", released.Load(), err)
	}
}

// A router that is not there, or does not become ready, is named by its socket.
func TestAwaitedRouterIsNamed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	starting := filepath.Join(dir, "starting")
	l, err := net.Listen("unix", starting)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"ready":false}`) }))
	s.Listener = l
	s.Start()
	defer s.Close()
	for _, socket := range []string{filepath.Join(dir, "missing"), starting} {
		c, err := parse(fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"pods","type":"weft-cni","socket":%q}`, socket))
		if err != nil {
			t.Fatal(err)
		}
		err = c.awaitRouter(t.Context(), 50*time.Millisecond)
		if err == nil || !strings.Contains(err.Error(), "for the router on "+socket+` ("socket" in the configuration of network pods)`) {
			t.Errorf("%v", err)
		}
		if missing := socket != starting; errors.Is(err, api.ErrNotRunning) != missing {
			t.Errorf("not running: %v", err)
		}
	}
}

// STATUS reports a router that hangs as unavailable, before the kubelet considers the
// runtime dead.
func TestStatusOfHangingRouter(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conf := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"pods","type":"weft-cni","socket":%q}`, socket)
	began := time.Now()
	err = Verbs("weft-cni").Status(&skel.CmdArgs{StdinData: []byte(conf)})
	var e *types.Error
	if !errors.As(err, &e) || e.Code != types.ErrPluginNotAvailable || !strings.Contains(e.Msg, "no answer in time") {
		t.Errorf("status: %v", err)
	}
	// The kubelet's timeout for the runtime is 30 seconds.
	if took := time.Since(began); took > 25*time.Second {
		t.Errorf("it took %v", took)
	}
}
