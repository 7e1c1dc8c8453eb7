package proxy

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/docker/plugin"
)

func TestRequestedAddresses(t *testing.T) {
	subnet := netip.MustParsePrefix("10.32.0.0/12")
	for _, c := range []struct {
		env   []string
		want  string // subnet, address, more
		given bool
		err   string
	}{
		{nil, "", false, ""},
		{[]string{"PATH=/bin"}, "", false, ""},
		{[]string{"WEFT_CIDR=none"}, "", true, ""},
		{[]string{"WEFT_CIDR="}, "10.32.0.0/12 any []", true, ""},
		{[]string{"WEFT_CIDR=net:default"}, "10.32.0.0/12 any []", true, ""},
		{[]string{"WEFT_CIDR=10.1.2.3/24"}, "10.1.2.0/24 10.1.2.3 []", true, ""},
		{[]string{"WEFT_CIDR=net:10.1.2.0/24,ip:10.1.2.9/24 fd00::5/64"}, "10.1.2.0/24 any [ip:10.1.2.9/24 fd00::5/64]", true, ""},
		{[]string{"WEFT_CIDR=fd00::5/64 10.1.2.9/24"}, "10.1.2.0/24 10.1.2.9 [fd00::5/64]", true, ""},
		{[]string{"WEAVE_CIDR=10.1.2.3/24"}, "10.1.2.0/24 10.1.2.3 []", true, ""},
		{[]string{"WEFT_CIDR=none", "WEAVE_CIDR=10.1.2.3/24"}, "", true, ""},
		{[]string{"WEFT_CIDR=10.1.2.3/24", "WEFT_CIDR=none"}, "", true, ""},                                 // the last one counts
		{[]string{"WEAVE_CIDR=10.1.2.3/24", "WEAVE_CIDR=10.1.2.4/24"}, "10.1.2.0/24 10.1.2.4 []", true, ""}, // of the image, of the container
		{[]string{"WEFT_CIDR=10.1.2.3/24 ip:10.1.2.3/24"}, "", true, "given twice"},
		{[]string{"WEFT_CIDR=10.1.2.0/24"}, "", true, "names the subnet itself"},
		{[]string{"WEFT_CIDR=fd00::5/64"}, "", true, "needs an IPv4 address"},
		{[]string{"WEFT_CIDR=" + strings.Repeat("net:default ", 65)}, "", true, "the maximum is"},
	} {
		asked, given, err := requestedAddresses(c.env, subnet)
		got := ""
		if asked != nil {
			addr := "any"
			if asked.addr.IsValid() {
				addr = asked.addr.String()
			}
			got = fmt.Sprint(asked.subnet, " ", addr, " ", asked.more)
		}
		if (c.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.err) || given != c.given || err == nil && got != c.want {
			t.Errorf("%q: %q, given %v, %v; want %q, %v, %s", c.env, got, given, err, c.want, c.given, c.err)
		}
	}
	if _, _, err := requestedAddresses([]string{"WEFT_CIDR="}, netip.Prefix{}); err == nil {
		t.Error("an address was requested without an address range")
	}
}

func TestHostnames(t *testing.T) {
	p := &Proxy{Config: Config{HostnameMatch: regexp.MustCompile("^aws-[0-9]+-(.*)$"), HostnameReplacement: "my-app-$1"}}
	for name, want := range map[string]string{"aws-12798186823-foo": "my-app-foo", "/aws-1-x": "my-app-x", "other": "other", "": "", "aws-1-" + strings.Repeat("x", 70): ""} {
		if got := p.hostname(name, nil); got != want {
			t.Errorf("hostname of %q: %q, want %q", name, got, want)
		}
	}
	p = &Proxy{Config: Config{HostnameFromLabel: "role"}}
	if got := p.hostname("name", map[string]string{"role": "db"}); got != "db" {
		t.Errorf("hostname from the label: %q, want db", got)
	}
	if got := p.hostname("name", nil); got != "name" {
		t.Errorf("hostname without the label: %q, want the name", got)
	}
}

// A container looks for names in its own domain first, if that is one of the mesh.
func TestSearchedDomains(t *testing.T) {
	for _, c := range []struct{ hostname, domainname, want string }{
		{"", "", "foo.bar"},
		{"web", "foo.bar", "foo.bar"},
		{"web.Foo.bar", "", "foo.bar"},
		{"web.sub.foo.bar", "", "sub.foo.bar foo.bar"},
		{"web", "sub.foo.bar", "sub.foo.bar foo.bar"},
		{"web.example.com", "", "foo.bar"},
		{"web.notfoo.bar", "", "foo.bar"},
		{"web", "example.com", "example.com foo.bar"},
	} {
		r := createRequest{hostname: c.hostname, domainname: c.domainname}
		if got := strings.Join(r.searched("foo.bar"), " "); got != c.want {
			t.Errorf("hostname %q, domain %q: %q, want %q", c.hostname, c.domainname, got, c.want)
		}
	}
}

// Fields that the proxy does not know keep their exact bytes.
func TestEditKeepsUnknownFields(t *testing.T) {
	p := &Proxy{Config: Config{DNS: func() (netip.Addr, string, bool) { return netip.MustParseAddr("172.17.0.1"), "weft.internal", true }}}
	body := `{"image":"x","New":{"a":[1,2.50,"\u00e9"]},"hostconfig":{"Binds":["/a:/b"],"Future":1e400,"NetworkMode":"default"},"Env":["A=1"]}`
	doc, err := parseDocument([]byte(body))
	if err != nil {
		t.Fatal(err)
	}
	c, err := readCreateRequest(doc)
	if err != nil || c.image != "x" || c.mode != "default" {
		t.Fatalf("%+v, %v", c, err)
	}
	p.edit(c, "web")
	got, err := c.document()
	want := `{"Domainname":"weft.internal","Env":["A=1"],"Hostname":"web","New":{"a":[1,2.50,"\u00e9"]},"hostconfig":{"Binds":["/a:/b"],"Dns":["172.17.0.1"],"DnsOptions":["ndots:1"],"DnsSearch":["weft.internal"],"Future":1e400,"NetworkMode":"default"},"image":"x"}`
	if err != nil || string(got) != want {
		t.Errorf("%v\n%s\nwant\n%s", err, got, want)
	}
	c, _ = readCreateRequest(mustParse(t, `{"Hostname":"mine","HostConfig":{"Dns":["9.9.9.9"]}}`))
	if p.edit(c, "web"); c.edited {
		t.Errorf("the user's choices were changed: %+v", c)
	}
}

func mustParse(t *testing.T, s string) document {
	t.Helper()
	d, err := parseDocument([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestInspectShowsWeftAddress(t *testing.T) {
	body := `{"Id":"x","NetworkSettings":{"IPAddress":"172.17.0.2","MacAddress":"02:42:ac:11:00:02","Networks":{"bridge":{"IPAddress":"172.17.0.2"},"weft":{"IPAddress":"10.32.0.1","IPPrefixLen":12,"MacAddress":"02:42:0a:20:00:01","Gateway":""}}}}`
	got, ok := rewriteInspect([]byte(body))
	if !ok {
		t.Fatal("not edited")
	}
	var r struct {
		ID              string `json:"Id"`
		NetworkSettings struct {
			IPAddress, MacAddress string
			IPPrefixLen           int
			Networks              map[string]any
		}
	}
	if err := json.Unmarshal(got, &r); err != nil {
		t.Fatal(err)
	}
	if n := r.NetworkSettings; r.ID != "x" || n.IPAddress != "10.32.0.1" || n.IPPrefixLen != 12 || n.MacAddress != "02:42:0a:20:00:01" || len(n.Networks) != 2 {
		t.Errorf("%s", got)
	}
	for _, other := range []string{`{}`, `[]`, `x`, `{"NetworkSettings":{"Networks":{"bridge":{"IPAddress":"172.17.0.2"}}}}`, `{"NetworkSettings":{"Networks":{"weft":{"IPAddress":""}}}}`} {
		if _, ok := rewriteInspect([]byte(other)); ok {
			t.Errorf("%s was edited", other)
		}
	}
}

func FuzzEdit(f *testing.F) {
	f.Add([]byte(`{"Image":"x","HostConfig":{"NetworkMode":"bridge"},"Env":["WEFT_CIDR=10.1.1.1/24"]}`))
	f.Add([]byte(`{"NetworkSettings":{"Networks":{"weft":{"IPAddress":"10.1.1.1"}}}}`))
	f.Add([]byte(`{"hostconfig":null,"HOSTCONFIG":{}}`))
	p := &Proxy{Config: Config{DNS: func() (netip.Addr, string, bool) { return netip.MustParseAddr("172.17.0.1"), "weft.internal", true }}}
	f.Fuzz(func(t *testing.T, b []byte) {
		if edited, ok := rewriteInspect(b); ok && !json.Valid(edited) {
			t.Errorf("an inspect response became %q", edited)
		}
		doc, err := parseDocument(b)
		if err != nil {
			return
		}
		c, err := readCreateRequest(doc)
		if err != nil {
			return
		}
		if _, _, err := requestedAddresses(c.env, netip.MustParsePrefix("10.32.0.0/12")); err != nil {
			return
		}
		p.edit(c, "web")
		c.moveTo(networkJoin{network: "weft"})
		edited, err := c.document()
		if err != nil || !json.Valid(edited) {
			t.Errorf("a create request became %q, %v", edited, err)
		}
	})
}

func TestContainerIsRemovedIfConnectFails(t *testing.T) {
	calls := make(chan string, 20)
	dial := newTestProxy(t, func(e *net.UnixConn) {
		for r := bufio.NewReader(e); ; {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			body, _ := io.ReadAll(req.Body)
			rest := pathOf(req)
			calls <- req.Method + " " + rest
			code, answer := 200, "{}"
			switch {
			case rest == "/containers/create":
				code, answer = 201, `{"Id":"0123456789abcdef"}`
				if strings.Contains(string(body), "NetworkMode") {
					code, answer = 400, `{"message":"edited without a reason"}`
				}
			case strings.HasSuffix(rest, "/connect"):
				code, answer = 500, `{"message":"no space"}`
			case strings.HasPrefix(rest, "/networks/"):
				answer = `{"Name":"weft-10.1.1.0-24","Driver":"weft"}`
			case rest == "/_ping":
				answer = ""
			}
			fmt.Fprintf(e, "HTTP/1.1 %d X\r\nApi-Version: 1.41\r\nContent-Length: %d\r\n\r\n%s", code, len(answer), answer)
		}
	})
	client := dial()
	body := `{"Image":"x","Env":["WEFT_CIDR=10.1.1.5/24"]}`
	fmt.Fprintf(client, "POST /v1.41/containers/create HTTP/1.1\r\nHost: d\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	r, err := http.ReadResponse(bufio.NewReader(client), nil)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(r.Body)
	if r.StatusCode != 500 || !strings.Contains(string(text), "no space") {
		t.Errorf("%d %s", r.StatusCode, text)
	}
	close(calls)
	var all []string
	for c := range calls {
		all = append(all, c)
	}
	if !slices.Contains(all, "DELETE /containers/0123456789abcdef") {
		t.Errorf("the engine was asked %q", all)
	}
}

func TestCheckListen(t *testing.T) {
	verify := TLS{Cert: "c", Key: "k", CA: "a"}
	for _, c := range []struct {
		addr string
		tls  TLS
		ok   bool
	}{
		{"unix:///run/x.sock", TLS{}, true}, {"tcp://127.0.0.1:1", TLS{}, true}, {"tcp://[::1]:1", TLS{}, true}, {"tcp://localhost:1", TLS{}, true},
		{"tcp://0.0.0.0:1", verify, true}, {"tcp://:1", verify, true},
		{"tcp://0.0.0.0:1", TLS{}, false}, {"tcp://:1", TLS{Cert: "c", Key: "k"}, false}, {"tcp://192.0.2.1:1", TLS{}, false},
		{"unix://x", TLS{}, false}, {"/run/x.sock", TLS{}, false}, {"tcp://127.0.0.1", TLS{}, false}, {"http://127.0.0.1:1", TLS{}, false}, {"", TLS{}, false},
	} {
		if err := CheckListen(c.addr, c.tls); (err == nil) != c.ok {
			t.Errorf("%s with %+v: %v", c.addr, c.tls, err)
		}
	}
}

func TestAllowSpoofVariable(t *testing.T) {
	for _, c := range []struct {
		env  []string
		want bool
		err  string
	}{
		{nil, false, ""},
		{[]string{"WEFT_ALLOW_SPOOF="}, true, ""},
		{[]string{"WEFT_ALLOW_SPOOF=true"}, true, ""},
		{[]string{"WEFT_ALLOW_SPOOF=true", "WEFT_ALLOW_SPOOF=0"}, false, ""},
		{[]string{"WEFT_ALLOW_SPOOF=perhaps"}, false, "want true or false"},
	} {
		got, err := mayAllowSpoof(c.env)
		if got != c.want || (c.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q: %v, %v; want %v, %q", c.env, got, err, c.want, c.err)
		}
	}
	if s := (networkJoin{allowSpoof: true}).settings(); s.DriverOpts[plugin.AllowSpoofOption] != "true" {
		t.Errorf("options %v", s.DriverOpts)
	}
	if s := (networkJoin{}).settings(); len(s.DriverOpts) > 0 {
		t.Errorf("options %v", s.DriverOpts)
	}
}

// The option is set next to what the user has set, which wins.
func TestSetDriverOption(t *testing.T) {
	for body, want := range map[string]string{
		`{"Image":"x","HostConfig":{"NetworkMode":"weft"}}`: `{"HostConfig":{"NetworkMode":"weft"},"Image":"x","NetworkingConfig":{"EndpointsConfig":{"weft":{"DriverOpts":{"o":"1"}}}}}`,
		`{"HostConfig":{"NetworkMode":"weft"},"NetworkingConfig":{"EndpointsConfig":{"weft":{"Aliases":["a"],"DriverOpts":{"p":"2"}},"z":null}}}`: `{"HostConfig":{"NetworkMode":"weft"},"NetworkingConfig":{"EndpointsConfig":{"weft":{"Aliases":["a"],"DriverOpts":{"o":"1","p":"2"}},"z":null}}}`,
		`{"HostConfig":{"NetworkMode":"weft"},"NetworkingConfig":{"EndpointsConfig":{"weft":{"DriverOpts":{"o":"0"}}}}}`:                          `{"HostConfig":{"NetworkMode":"weft"},"NetworkingConfig":{"EndpointsConfig":{"weft":{"DriverOpts":{"o":"0"}}}}}`,
		`{"HostConfig":{"NetworkMode":"weft"},"NetworkingConfig":null}`:                                                                           `{"HostConfig":{"NetworkMode":"weft"},"NetworkingConfig":{"EndpointsConfig":{"weft":{"DriverOpts":{"o":"1"}}}}}`,
	} {
		c, err := readCreateRequest(mustParse(t, body))
		if err != nil {
			t.Fatal(err)
		}
		err = c.setDriverOption("o", "1")
		got, err2 := c.document()
		if err != nil || err2 != nil || string(got) != want {
			t.Errorf("%s: %v, %v\n%s\nwant\n%s", body, err, err2, got, want)
		}
	}
	c, err := readCreateRequest(mustParse(t, `{"HostConfig":{"NetworkMode":"weft"},"NetworkingConfig":[]}`))
	if err != nil {
		t.Fatal(err)
	}
	if c.setDriverOption("o", "1") == nil || c.edited {
		t.Error("a document of another form was edited")
	}
}
