package cni

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
)

// A plugin that asks for addresses and gets an error does not call DEL: addresses
// whose gateway could not be had go back at once.
func TestAddressesWithoutGatewayGoBack(t *testing.T) {
	var released atomic.Int32
	mux := http.NewServeMux()
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
