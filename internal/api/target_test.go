package api

import (
	"net"
	"strconv"
	"testing"
)

func TestSplitTarget(t *testing.T) {
	for _, c := range []struct {
		in, host string
		port     int
	}{
		{"host1", "host1", 0},
		{"host1:7000", "host1", 7000},
		{"a.example.com.", "a.example.com.", 0},
		{"192.168.1.2", "192.168.1.2", 0},
		{"192.168.1.2:6783", "192.168.1.2", 6783},
		{"fd00::1", "fd00::1", 0},
		{"[fd00::1]", "fd00::1", 0},
		{"[fd00::1]:6783", "fd00::1", 6783},
		{"fe80::1%eth0", "fe80::1%eth0", 0},
	} {
		host, port, err := SplitTarget(c.in)
		if err != nil || host != c.host || port != c.port {
			t.Errorf("%q: %q, %d, %v", c.in, host, port, err)
		}
	}
	for _, bad := range []string{
		"", ":", ":6783", "host:", "host:0", "host:65536", "host:06783", "host:x", "-h", "a b", "192.168.1", "192.168.1.256",
		"0.0.0.0", "::", "224.0.0.1", "[fd00::1", "[fd00::1]x", "[fd00::1]6783", "[1.2.3.4]:5", "http://x", "a/b", "255.255.255.255",
	} {
		if err := CheckTarget(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func FuzzSplitTarget(f *testing.F) {
	for _, s := range []string{"host1:7000", "[fd00::1]:6783", "fe80::1%eth0", "1.2.3.4", "[::", "]:1", "a..b", "[fe80::1%[]:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		host, port, err := SplitTarget(s)
		if err != nil {
			return
		}
		if host == "" || port < 0 || port > 65535 {
			t.Fatalf("%q: host %q, port %d", s, host, port)
		}
		if port > 0 {
			again, p, err := SplitTarget(net.JoinHostPort(host, strconv.Itoa(port)))
			if err != nil || again != host || p != port {
				t.Fatalf("%q: joined again it is %q, %d, %v", s, again, p, err)
			}
		}
	})
}
