package testbed

import (
	"strings"
	"testing"
)

func TestCheckName(t *testing.T) {
	for _, ok := range []string{"lab", "a", "my-lab", "h1", "x2-y", "a-host", strings.Repeat("a", 32)} {
		if err := CheckName(ok); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "A", "a_b", "-a", "a-", "a/b", "..", "a-h1", "a-h12-b", "a-underlay", strings.Repeat("a", 33)} {
		if CheckName(bad) == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestConfigCheck(t *testing.T) {
	good := Config{Name: "lab", Hosts: 3, Topology: Full}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		"0 hosts":             func(c *Config) { c.Hosts = 0 },
		"251 hosts":           func(c *Config) { c.Hosts = 251 },
		`topology "ring"`:     func(c *Config) { c.Topology = "ring" },
		"underlay MTU 1279":   func(c *Config) { c.UnderlayMTU = 1279 },
		"underlay MTU 65536":  func(c *Config) { c.UnderlayMTU = 65536 },
		`lab name "UP"`:       func(c *Config) { c.Name = "UP" },
		"looks like the name": func(c *Config) { c.Name = "x-h1" },
	} {
		c := good
		change(&c)
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
}

func FuzzParsePlace(f *testing.F) {
	for _, s := range []string{"h1", "h250", "h251", "h0", "h01", "h1/web", "h3/a.b-c_d", "h1/", "h1/../x", "h1/a/b", "H1", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePlace(s)
		if err != nil {
			return
		}
		if p.String() != s {
			t.Fatalf("%q: reads as %q", s, p)
		}
		if p.Host < 1 || p.Host > MaxHosts {
			t.Fatalf("%q: host %d", s, p.Host)
		}
		ns := p.namespace("lab")
		if strings.ContainsAny(ns, "/ \x00") || len(ns) > 255 {
			t.Fatalf("%q: namespace %q is not a file name", s, ns)
		}
	})
}
