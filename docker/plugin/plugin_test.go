package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/store"
)

// host is the allocator and the kernel of a host, as the driver sees them.
type host struct {
	mu    sync.Mutex
	given map[netip.Addr]string
	ports map[string]string // ports that were made: name, then MAC address and addresses
	back  map[string]bool   // other ends that were moved back to the host
	more  []string
	hosts []string            // edits of hosts files
	inUse map[netip.Addr]bool // behind ports, by the kernel
	fail  error               // of the calls that may fail
}

var testRange = netip.MustParsePrefix("10.32.0.0/12")

func (h *host) Default(v6 bool) (netip.Prefix, bool) { return testRange, !v6 }

func (h *host) Check(p netip.Prefix) error {
	if !testRange.Contains(p.Addr()) || p.Bits() < testRange.Bits() {
		return errors.New("outside")
	}
	return nil
}

func (h *host) Allocate(ctx context.Context, owner string, subnet netip.Prefix) (netip.Prefix, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fail != nil {
		return netip.Prefix{}, h.fail
	}
	for a := subnet.Addr().Next(); subnet.Contains(a); a = a.Next() {
		if h.given[a] == "" {
			h.given[a] = owner
			return netip.PrefixFrom(a, subnet.Bits()), nil
		}
	}
	return netip.Prefix{}, errors.New("full")
}

func (h *host) Claim(_ context.Context, owner string, p netip.Prefix) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if o := h.given[p.Addr()]; o != "" && o != owner {
		return fmt.Errorf("in use by %s", o)
	}
	h.given[p.Addr()] = owner
	return h.fail
}

func (h *host) Release(owner string, a netip.Addr) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.given[a] == owner {
		delete(h.given, a)
	}
	return nil
}

func (h *host) Owners() map[string][]netip.Prefix {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make(map[string][]netip.Prefix)
	for a, o := range h.given {
		all[o] = append(all[o], netip.PrefixFrom(a, 12))
	}
	return all
}

func (h *host) Make(port, inside string, mac net.HardwareAddr, mtu int, user netdev.PortUser) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var addrs []netip.Addr
	for _, p := range user.Addrs {
		addrs = append(addrs, p.Addr())
	}
	if !strings.HasPrefix(user.Owner, "docker:endpoint:") {
		return fmt.Errorf("the owner of port %s is %q", port, user.Owner)
	}
	h.ports[port] = fmt.Sprint(inside, " ", mac, " ", mtu, " ", addrs)
	if user.AllowSpoof {
		h.ports[port] += " may spoof"
	}
	return h.fail
}

func (h *host) InUse() (map[netip.Addr]bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.inUse), nil
}

func (h *host) AddAddresses(_ context.Context, path string, mac net.HardwareAddr, addrs []netip.Prefix) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.more = append(h.more, fmt.Sprint(path, " ", mac, " ", addrs))
	return nil
}

func (h *host) editHosts(container, hostname string, own []netip.Addr) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hosts = append(h.hosts, fmt.Sprint(container, " ", hostname, " ", own))
	return nil
}

func (h *host) Delete(port string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.ports, port)
	return nil
}

func (h *host) InContainer(port, inside string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ports[port] != "" && !h.back[inside]
}

// bench is a driver and its host.
type bench struct {
	*host
	store  *store.Store
	driver *Driver
}

func newBench(t testing.TB) *bench {
	st, _, err := store.Open(filepath.Join(t.TempDir(), "weft.db"))
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{host: &host{given: make(map[netip.Addr]string), ports: make(map[string]string)}, store: st}
	b.restart()
	t.Cleanup(func() {
		b.driver.Close()
		st.Close()
	})
	return b
}

// restart makes a new driver from the same disk, as a restarted router does.
func (b *bench) restart() {
	if b.driver != nil {
		b.driver.Close()
	}
	b.driver = New(Config{Addresses: b.host, Links: b.host, Hosts: b.editHosts, Store: b.store, Log: slog.New(slog.DiscardHandler)})
}

// call sends a request as the engine does and returns the body of the reply.
func (b *bench) call(t testing.TB, name, body string) string {
	t.Helper()
	w := httptest.NewRecorder()
	b.driver.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/"+name, strings.NewReader(body)))
	if w.Code != http.StatusOK {
		var e struct{ Err string }
		if json.Unmarshal(w.Body.Bytes(), &e) != nil || e.Err == "" || strings.Contains(e.Err, "\n") {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
	return w.Body.String()
}

func (b *bench) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.given)
}

const (
	netID = "ad1f0b2b9d7c4c0cb1a1a1a1a1a1a1a1"
	endID = "0123456789abcdef0123456789abcdef"
)

func request(format string, args ...any) string {
	return strings.NewReplacer("NET", netID, "END", endID).Replace(fmt.Sprintf(format, args...))
}

// The requests for a network and a container, as libnetwork documents them; each twice,
// because an engine repeats a request whose answer it did not see.
func TestRequestsOfOneContainer(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct{ name, body, want string }{
		{"Plugin.Activate", "", `{"Implements":["NetworkDriver","IpamDriver"]}`},
		{"NetworkDriver.GetCapabilities", "", `{"Scope":"local","ConnectivityScope":"global"}`},
		{"IpamDriver.GetCapabilities", "{}", `{"RequiresMACAddress":false,"RequiresRequestReplay":false}`},
		{"IpamDriver.GetDefaultAddressSpaces", "null", `{"LocalDefaultAddressSpace":"weftlocal","GlobalDefaultAddressSpace":"weftglobal"}`},
		{"IpamDriver.RequestPool", `{"AddressSpace":"weftlocal","Pool":"10.40.1.7/24","SubPool":"10.40.1.128/25","Options":null,"V6":false}`,
			`{"PoolID":"weft-10.40.1.0/24-10.40.1.128/25","Pool":"10.40.1.0/24","Data":{"com.docker.network.gateway":"0.0.0.0/0"}}`},
		{"IpamDriver.RequestPool", `{}`, `{"PoolID":"weft-10.32.0.0/12-10.32.0.0/12","Pool":"10.32.0.0/12","Data":{"com.docker.network.gateway":"0.0.0.0/0"}}`},
		{"NetworkDriver.CreateNetwork", `{"NetworkID":"NET","Options":{"com.docker.network.generic":{"weft.multicast":"true"},"com.docker.network.enable_ipv6":false},
			"IPv4Data":[{"AddressSpace":"weftlocal","Pool":"10.40.1.0/24","Gateway":"10.40.1.1/24","AuxAddresses":{}}],"IPv6Data":[],"Future":1}`, `{}`},
		{"NetworkDriver.CreateEndpoint", `{"NetworkID":"NET","EndpointID":"END","Interface":{"Address":"10.40.1.129/24","AddressIPv6":"","MacAddress":""},"Options":{"weft.hosts":"END web","weft.addresses":"10.40.2.9/24 net:default"}}`,
			`{"Interface":{"MacAddress":"02:42:0a:28:01:81"}}`},
		{"NetworkDriver.EndpointOperInfo", `{"NetworkID":"NET","EndpointID":"END"}`, `{"Value":{}}`},
		{"NetworkDriver.Join", `{"NetworkID":"NET","EndpointID":"END","SandboxKey":"/run/x","Options":null}`,
			`{"InterfaceName":{"SrcName":"vethwe01234567c","DstPrefix":"ethwe"},"Gateway":"10.40.1.1","StaticRoutes":[{"Destination":"224.0.0.0/4","RouteType":1,"NextHop":""}]}`},
		{"NetworkDriver.ProgramExternalConnectivity", `{}`, `{}`},
	} {
		for range 2 {
			if got := b.call(t, c.name, request("%s", c.body)); got != c.want {
				t.Errorf("%s %s:\n%s, want\n%s", c.name, c.body, got, c.want)
			}
		}
	}
	if got := b.ports["vethwe01234567"]; got != "vethwe01234567c 02:42:0a:28:01:81 0 [10.40.1.129 10.40.2.9 10.32.0.1]" {
		t.Errorf("the port was made as %q", got)
	}
	b.restart()
	if got := b.driver.Endpoints(); len(got) != 1 || got[0].ID != endID || len(got[0].Addresses) != 3 {
		t.Errorf("after a restart there are %+v", got)
	}
	if want := "/run/x 02:42:0a:28:01:81 [10.40.2.9/24 10.32.0.1/12]"; !slices.Contains(b.more, want) {
		t.Errorf("more addresses: %q, want %q", b.more, want)
	}
	if want := endID + " web [10.40.1.129]"; !slices.Contains(b.hosts, want) {
		t.Errorf("edits of hosts files: %q, want %q", b.hosts, want)
	}
	for range 2 {
		for _, name := range []string{"Leave", "DeleteEndpoint"} {
			if got := b.call(t, "NetworkDriver."+name, request(`{"NetworkID":"NET","EndpointID":"END"}`)); got != `{}` {
				t.Errorf("%s: %s", name, got)
			}
		}
		if got := b.call(t, "NetworkDriver.DeleteNetwork", request(`{"NetworkID":"NET"}`)); got != `{}` {
			t.Errorf("DeleteNetwork: %s", got)
		}
		if got := b.call(t, "IpamDriver.ReleasePool", `{"PoolID":"weft-10.40.1.0/24-10.40.1.128/25"}`); got != `{}` {
			t.Errorf("ReleasePool: %s", got)
		}
	}
	if b.driver.Close(); len(b.ports) != 0 || b.count() != 0 {
		t.Errorf("at the end there are %v and %v", b.ports, b.given)
	}
}

func address(t *testing.T, reply string) string {
	t.Helper()
	var r struct{ Address string }
	if err := json.Unmarshal([]byte(reply), &r); err != nil {
		t.Fatal(err)
	}
	return r.Address
}

func TestAddresses(t *testing.T) {
	b := newBench(t)
	ask := func(body string) string { return b.call(t, "IpamDriver.RequestAddress", body) }
	pool := `"PoolID":"weft-10.40.1.0/24-10.40.1.128/25"`
	first := address(t, ask(`{`+pool+`,"Address":""}`))
	if first != "10.40.1.129/24" {
		t.Errorf("first address of the range is %s", first)
	}
	if got := address(t, ask(`{`+pool+`,"Address":"10.40.1.5","Options":null}`)); got != "10.40.1.5/24" {
		t.Errorf("requested 10.40.1.5, got %s", got)
	}
	for body, words := range map[string]string{
		`{` + pool + `,"Address":"10.40.1.5"}`:        "in use by another container",
		`{` + pool + `,"Address":"10.40.2.5"}`:        "not in the subnet",
		`{` + pool + `,"Address":"x"}`:                "not in the subnet",
		`{"PoolID":"LocalDefault/10.0.0.0/8"}`:        "not one of weft's",
		`{"PoolID":"weft-10.40.1.0/24-10.40.2.0/25"}`: "not in the subnet",
		`{"PoolID":17}`:                               "read the request",
	} {
		if got := ask(body); !strings.Contains(got, words) {
			t.Errorf("%s: %s, want %s", body, got, words)
		}
	}
	// A pool outside all ranges needs the option.
	outside := `"AddressSpace":"weftlocal","Pool":"192.168.7.0/24"`
	if got := b.call(t, "IpamDriver.RequestPool", `{`+outside+`}`); !strings.Contains(got, "outside") {
		t.Errorf("a pool outside: %s", got)
	}
	if got := b.call(t, "IpamDriver.RequestPool", `{`+outside+`,"Options":{"weft.outside":"true"}}`); !strings.Contains(got, `"Pool":"192.168.7.0/24"`) {
		t.Errorf("a pool outside with the option: %s", got)
	}
	// A gateway may be in use by anybody.
	b.given[netip.MustParseAddr("10.40.1.1")] = "somebody"
	if got := address(t, ask(`{`+pool+`,"Address":"10.40.1.1","Options":{"RequestAddressType":"com.docker.network.gateway"}}`)); got != "10.40.1.1/24" {
		t.Errorf("the gateway is %s", got)
	}
	b.restart() // leases are found again
	for range 2 {
		b.call(t, "IpamDriver.ReleaseAddress", `{`+pool+`,"Address":"10.40.1.129"}`)
		b.call(t, "IpamDriver.ReleaseAddress", `{`+pool+`,"Address":"10.40.1.5/24"}`)
		b.call(t, "IpamDriver.ReleaseAddress", `{`+pool+`,"Address":"10.40.1.1"}`)
	}
	if len(b.given) != 1 {
		t.Errorf("after all were released there are %v", b.given)
	}
	b.fail = errors.New("no ring yet:\nwaiting for h2")
	if got := ask(`{` + pool + `}`); !strings.Contains(got, "no ring yet: waiting for h2") {
		t.Errorf("the error is %s", got)
	}
}

func TestRefusedNetworks(t *testing.T) {
	b := newBench(t)
	for body, words := range map[string]string{
		`{"NetworkID":"short"}`: "not an id of docker",
		`{"NetworkID":"NET","IPv4Data":[{"AddressSpace":"LocalDefault","Pool":"172.18.0.0/16","Gateway":"172.18.0.1/16"}]}`: "--ipam-driver weft",
		`{"NetworkID":"NET","Options":{"com.docker.network.generic":{"weft.multicst":"1"}}}`:                                "unknown; want weft.multicast",
		`{"NetworkID":"NET","Options":{"com.docker.network.generic":{"weft.multicast":"x"}}}`:                               "want true or false",
		`{"NetworkID":"NET","Options":{"com.docker.network.generic":{"com.docker.network.driver.mtu":"9"}}}`:                "want 576",
	} {
		if got := b.call(t, "NetworkDriver.CreateNetwork", request("%s", body)); !strings.Contains(got, words) {
			t.Errorf("%s: %s, want %s", body, got, words)
		}
	}
	if got := b.call(t, "NetworkDriver.Join", request(`{"NetworkID":"NET","EndpointID":"END"}`)); !strings.Contains(got, "not known") {
		t.Errorf("Join of an unknown endpoint: %s", got)
	}
	// Addresses that Docker chose are accepted if they can be claimed, without the gateway
	// that it made up.
	b.call(t, "NetworkDriver.CreateNetwork", request(`{"NetworkID":"NET","IPv4Data":[{"AddressSpace":"LocalDefault","Pool":"10.40.0.0/16","Gateway":"10.40.0.1/16"}]}`))
	b.call(t, "NetworkDriver.CreateEndpoint", request(`{"NetworkID":"NET","EndpointID":"END","Interface":{"Address":"10.40.0.2/16"}}`))
	if got := b.call(t, "NetworkDriver.Join", request(`{"NetworkID":"NET","EndpointID":"END"}`)); strings.Contains(got, "Gateway") {
		t.Errorf("Join: %s", got)
	}
	if b.given[netip.MustParseAddr("10.40.0.2")] == "" {
		t.Error("an address that docker chose is not claimed")
	}
	b.call(t, "NetworkDriver.DeleteEndpoint", request(`{"NetworkID":"NET","EndpointID":"END"}`))
	if b.count() != 0 {
		t.Errorf("the address is still allocated: %v", b.given)
	}
	// An engine that requests pools without end gets an error.
	var last string
	for range guardCount + 2 {
		last = b.call(t, "IpamDriver.RequestPool", `{}`)
	}
	if !strings.Contains(last, "--subnet 10.32.0.0/12") {
		t.Errorf("after too many requests the answer is %s", last)
	}
}

// The records are older than a container: its address stays, as the kernel has it.
func TestSweepLeavesWhatTheKernelHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.call(t, "IpamDriver.RequestAddress", `{"PoolID":"weft-10.40.1.0/24-10.40.1.0/24","Address":"10.40.1.6"}`)
		a := netip.MustParseAddr("10.40.1.6")
		sweep := func() {
			for range 3 {
				time.Sleep(idleGrace)
				b.driver.Sweep(time.Now())
			}
		}
		b.inUse = map[netip.Addr]bool{a: true}
		if sweep(); b.given[a] == "" {
			t.Error("the address of a port is freed")
		}
		b.inUse = nil
		if sweep(); b.given[a] != "" {
			t.Error("an address that no port has is not freed")
		}
	})
}

// Addresses of containers that disappeared silently are freed after a while, and none of
// those of living containers.
func TestSweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.call(t, "NetworkDriver.CreateNetwork", request(`{"NetworkID":"NET","IPv4Data":[{"AddressSpace":"weftlocal","Pool":"10.40.1.0/24","Gateway":"10.40.1.1/24"}]}`))
		pool := `"PoolID":"weft-10.40.1.0/24-10.40.1.0/24"`
		b.call(t, "IpamDriver.RequestAddress", `{`+pool+`,"Address":"10.40.1.1","Options":{"RequestAddressType":"com.docker.network.gateway"}}`)
		b.call(t, "IpamDriver.RequestAddress", `{`+pool+`,"Address":"10.40.1.5"}`)
		b.call(t, "IpamDriver.RequestAddress", `{`+pool+`,"Address":"10.40.1.6"}`) // of a start that never finished
		b.call(t, "NetworkDriver.CreateEndpoint", request(`{"NetworkID":"NET","EndpointID":"END","Interface":{"Address":"10.40.1.5/24"},"Options":{"weft.hosts":"END web","weft.addresses":"10.40.1.7/24"}}`))
		b.call(t, "NetworkDriver.Join", request(`{"NetworkID":"NET","EndpointID":"END","SandboxKey":"/run/x"}`))
		has := func(when string, want ...string) {
			t.Helper()
			var got []string
			for a := range b.given {
				got = append(got, a.String())
			}
			if slices.Sort(got); !slices.Equal(got, want) {
				t.Errorf("%s: %v are in use, want %v", when, got, want)
			}
		}
		sweep := func(d time.Duration) { // in synctest's time
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(10 * time.Second) {
				b.driver.Sweep(time.Now())
			}
		}
		sweep(time.Minute)
		has("after a minute", "10.40.1.1", "10.40.1.5", "10.40.1.6", "10.40.1.7")
		sweep(2 * time.Minute)
		has("after three minutes", "10.40.1.1", "10.40.1.5", "10.40.1.7")
		b.back = map[string]bool{inside(endID): true} // the engine removed it while no router answered
		sweep(goneGrace)
		has("just disappeared", "10.40.1.1", "10.40.1.5", "10.40.1.7")
		sweep(20 * time.Second)
		has("missing for longer than the grace period", "10.40.1.1")
		if b.ports[Port(endID)] != "" {
			t.Error("the port of a missing container is not deleted")
		}

		// A network that the engine removed while no router answered is forgotten, and one
		// that is made meanwhile is not.
		b.restart()
		const newID = "bd1f0b2b9d7c4c0cb1a1a1a1a1a1a1a1"
		b.call(t, "NetworkDriver.CreateNetwork", `{"NetworkID":"`+newID+`","IPv4Data":[{"AddressSpace":"weftlocal","Pool":"10.40.2.0/24","Gateway":"10.40.2.1/24"}]}`)
		b.call(t, "IpamDriver.RequestAddress", `{"PoolID":"weft-10.40.2.0/24-10.40.2.0/24","Address":"10.40.2.1"}`)
		for range 2 {
			if err := b.driver.KeepNetworks(nil); err != nil {
				t.Error(err)
			}
		}
		has("the network was removed", "10.40.2.1")

		// A request for a certain address need not wait for the sweep.
		b.call(t, "IpamDriver.RequestAddress", `{`+pool+`,"Address":"10.40.1.5"}`)
		b.call(t, "NetworkDriver.CreateEndpoint", request(`{"NetworkID":"NET","EndpointID":"END","Interface":{"Address":"10.40.1.5/24"}}`))
		time.Sleep(2 * staleAfter) // in synctest's time
		if got := b.call(t, "IpamDriver.RequestAddress", `{`+pool+`,"Address":"10.40.1.5"}`); address(t, got) != "10.40.1.5/24" {
			t.Errorf("request the address of a missing container: %s", got)
		}
		b.driver.Close()
	})
}

// A router that lost its state takes over the engine's networks and endpoints.
func TestAdopt(t *testing.T) {
	b := newBench(t)
	b.ports[Port(endID)] = "there"
	if err := b.driver.AdoptNetwork(netID, map[string]string{MulticastOption: "true"}, false, []netip.Addr{netip.MustParseAddr("10.40.1.1")}); err != nil {
		t.Fatal(err)
	}
	e := Endpoint{ID: endID, Network: netID, MAC: "02:42:0a:28:01:05", Addresses: []netip.Prefix{netip.MustParsePrefix("10.40.1.5/24")}}
	for range 2 {
		if err := b.driver.Adopt(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.driver.Adopt(t.Context(), Endpoint{ID: strings.Repeat("f", 64), Addresses: e.Addresses}); err != nil {
		t.Errorf("an endpoint of another driver: %v", err)
	}
	if len(b.given) != 1 || len(b.driver.Endpoints()) != 1 {
		t.Errorf("it took over %v and %v", b.given, b.driver.Endpoints())
	}
	if got := b.call(t, "NetworkDriver.Join", request(`{"NetworkID":"NET","EndpointID":"END"}`)); !strings.Contains(got, `"Gateway":"10.40.1.1"`) || !strings.Contains(got, "224.0.0.0/4") {
		t.Errorf("Join: %s", got)
	}
	b.call(t, "IpamDriver.ReleaseAddress", `{"Address":"10.40.1.5"}`)
	if b.count() != 0 {
		t.Errorf("the address is still allocated: %v", b.given)
	}
}

func FuzzRequests(f *testing.F) {
	names := []string{
		"NetworkDriver.CreateNetwork", "NetworkDriver.DeleteNetwork", "NetworkDriver.CreateEndpoint", "NetworkDriver.EndpointOperInfo", "NetworkDriver.Join",
		"NetworkDriver.Leave", "NetworkDriver.DeleteEndpoint", "IpamDriver.RequestPool", "IpamDriver.ReleasePool", "IpamDriver.RequestAddress", "IpamDriver.ReleaseAddress",
	}
	for i, body := range []string{
		`{"NetworkID":"NET","Options":{"com.docker.network.generic":{"weft.multicast":"true"}},"IPv4Data":[{"AddressSpace":"weftlocal","Gateway":"10.40.1.1/24"}]}`,
		`{"NetworkID":"NET"}`, `{"NetworkID":"NET","EndpointID":"END","Interface":{"Address":"10.40.1.5/24"},"Options":{"weft.hosts":"END web","weft.addresses":"net:default fd00::1/64"}}`,
		`{"EndpointID":"END"}`, `{"NetworkID":"NET","EndpointID":"END","SandboxKey":"/x"}`, `{"EndpointID":"END"}`, `{"EndpointID":"END"}`,
		`{"Pool":"10.40.0.0/16","SubPool":"10.40.1.0/24"}`, `{}`, `{"PoolID":"weft-10.40.1.0/24-10.40.1.0/24","Address":"10.40.1.5"}`, `{"Address":"10.40.1.5"}`,
	} {
		f.Add(uint8(i), []byte(request("%s", body)))
	}
	b := newBench(f)
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		w := httptest.NewRecorder()
		name := names[int(which)%len(names)]
		b.driver.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/"+name, bytes.NewReader(body)))
		if !json.Valid(w.Body.Bytes()) {
			t.Errorf("%s %q: %q", name, body, w.Body)
		}
	})
}

func FuzzPool(f *testing.F) {
	f.Add("weft-10.40.0.0/16-10.40.1.0/24")
	f.Add("weft-fd00::/64-fd00::/80")
	f.Fuzz(func(t *testing.T, id string) {
		p, err := parsePool(id)
		if err != nil {
			return
		}
		again, err := parsePool(p.String())
		if err != nil || again != p {
			t.Errorf("%q is %v, which is %v, %v", id, p, again, err)
		}
	})
}

// A container may spoof if its network or its endpoint says so.
func TestAllowSpoof(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct {
		network, endpoint string // options
		want              bool
	}{
		{"", "", false},
		{`"weft.allow-spoof":"true"`, "", true},
		{`"weft.allow-spoof":""`, "", true},
		{`"weft.allow-spoof":"false"`, "", false},
		{"", `"weft.allow-spoof":"true"`, true},
		{"", `"weft.allow-spoof":"0"`, false},
	} {
		for _, call := range [][2]string{
			{"CreateNetwork", `{"NetworkID":"NET","Options":{"com.docker.network.generic":{` + c.network + `}}}`},
			{"CreateEndpoint", `{"NetworkID":"NET","EndpointID":"END","Interface":{"Address":"10.40.1.5/24"},"Options":{` + c.endpoint + `}}`},
			{"Join", `{"NetworkID":"NET","EndpointID":"END","SandboxKey":"/run/x"}`},
		} {
			if got := b.call(t, "NetworkDriver."+call[0], request("%s", call[1])); strings.Contains(got, "Err") {
				t.Fatalf("%s: %s", call[0], got)
			}
		}
		if got := b.ports["vethwe01234567"]; strings.HasSuffix(got, "may spoof") != c.want {
			t.Errorf("%+v: the port was made as %q", c, got)
		}
		for _, name := range []string{"DeleteEndpoint", "DeleteNetwork"} {
			b.call(t, "NetworkDriver."+name, request(`{"NetworkID":"NET","EndpointID":"END"}`))
		}
	}
	for name, body := range map[string]string{
		"CreateNetwork":  `{"NetworkID":"NET","Options":{"com.docker.network.generic":{"weft.allow-spoof":"x"}}}`,
		"CreateEndpoint": `{"NetworkID":"NET","EndpointID":"END","Options":{"weft.allow-spoof":"x"}}`,
	} {
		if got := b.call(t, "NetworkDriver."+name, request("%s", body)); !strings.Contains(got, "want true or false") {
			t.Errorf("%s: %s", name, got)
		}
	}
}
