package resolvconf

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]string{
		"nameserver 192.0.2.1\nnameserver 192.0.2.2\n":                        "[192.0.2.1:53 192.0.2.2:53]",
		"# nameserver 192.0.2.1\n;nameserver 192.0.2.2\nsearch a\n":           "[]",
		"nameserver\t fe80::1%eth0 # why\r\nnameserver ::ffff:192.0.2.1\n":    "[[fe80::1%eth0]:53 192.0.2.1:53]",
		"nameserver x\nnameserver\noptions ndots:5\nnameserver 2001:db8::1":   "[[2001:db8::1]:53]",
		"nameserver 192.0.2.1\nnameserver 192.0.2.1\n nameserver 192.0.2.3\n": "[192.0.2.1:53 192.0.2.3:53]",
	} {
		if got, more := Parse([]byte(in)); fmt.Sprint(got) != want || more != 0 {
			t.Errorf("%q: %v and %d more, want %s", in, got, more, want)
		}
	}
}

// If resolv.conf names systemd-resolved only, the servers of systemd-resolved are used.
func TestReadFollowsSystemdResolved(t *testing.T) {
	dir := t.TempDir()
	path, resolved := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "resolved.conf")
	for _, c := range []struct{ own, resolved, want string }{
		{"nameserver 127.0.0.53\n", "nameserver 192.0.2.1\n", "[192.0.2.1:53]"},
		{"nameserver 127.0.0.53\n", "", "[127.0.0.53:53]"},
		{"nameserver 127.0.0.53\nnameserver 192.0.2.2\n", "nameserver 192.0.2.1\n", "[127.0.0.53:53 192.0.2.2:53]"},
		{"nameserver 192.0.2.2\n", "nameserver 192.0.2.1\n", "[192.0.2.2:53]"},
		{"", "nameserver 192.0.2.1\n", "[]"},
	} {
		for p, text := range map[string]string{path: c.own, resolved: c.resolved} {
			if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, err := Read(path, resolved)
		if err != nil || fmt.Sprint(got) != c.want {
			t.Errorf("%q with %q: %v, %v; want %s", c.own, c.resolved, got, err, c.want)
		}
	}
	var many strings.Builder
	for i := range maxServers + 2 {
		fmt.Fprintf(&many, "nameserver 192.0.2.%d\n", i)
	}
	if err := os.WriteFile(path, []byte(many.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Read(path, resolved)
	if len(got) != maxServers || err == nil || !strings.HasSuffix(err.Error(), "resolv.conf has 10 name servers, of which the first 8 are used") {
		t.Errorf("of ten servers %v are taken, %v", got, err)
	}
	if _, err := Read(filepath.Join(dir, "none"), resolved); err == nil {
		t.Error("a missing file is not an error")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("nameserver 192.0.2.1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if servers, _ := Parse(b); len(servers) > maxServers {
			t.Fatalf("%d servers", len(servers))
		}
	})
}
