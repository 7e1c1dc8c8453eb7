package netdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseStat(t *testing.T) {
	const two = "entries  allocs table_fulls\n00000010 000052ad 00000002\n00000010 00004e64 0000000b\n"
	for _, c := range []struct {
		text         string
		entries, got uint64
		ok           bool
	}{
		{two, 16, 13, true},
		{"entries allocs\n1 2\n", 0, 0, false},
		{"entries table_fulls\n", 0, 0, false},
		{"entries table_fulls\n1\n", 0, 0, false},
		{"entries table_fulls\nx y\n", 0, 0, false},
		{"", 0, 0, false},
	} {
		entries, full, err := parseStat([]byte(c.text), "table_fulls")
		if entries != c.entries && c.ok || full != c.got && c.ok || err == nil != c.ok {
			t.Errorf("%q: %d entries, full %d times, %v", c.text, entries, full, err)
		}
	}
}

func TestLimitsOfThisHost(t *testing.T) {
	got, err := Limits(ProcSys)
	if err != nil || len(got) == 0 || got[0].Name != "the kernel's table of IPv4 neighbours" || got[0].Max == 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if !(Limit{Used: 930, Max: 1024}).NearlyFull() || (Limit{Used: 900, Max: 1024}).NearlyFull() || (Limit{Used: 9}).NearlyFull() {
		t.Error("NearlyFull is wrong")
	}
}

// The 1,024th port of a bridge is refused with EXFULL, which alone says "exchange full". To fill a
// bridge takes too long for a test, as the kernel waits for its readers with each port.
func TestRefusalOfAPortIsExplained(t *testing.T) {
	err := portError(fmt.Errorf("wrapped: %w", unix.EXFULL))
	if !errors.Is(err, unix.EXFULL) || !strings.Contains(err.Error(), "has 1023 ports, and the kernel allows no more; connect further containers on other hosts") {
		t.Errorf("%v", err)
	}
	if err := portError(unix.EBUSY); err.Error() != unix.EBUSY.Error() {
		t.Errorf("%v", err)
	}
	if !(Limit{Used: 950, Max: maxPorts}).NearlyFull() {
		t.Error("950 ports are not nearly full")
	}
}

func TestRaiseNeighbours(t *testing.T) {
	dir := t.TempDir()
	write := func(family string, limits ...string) {
		d := filepath.Join(dir, "net", family, "neigh", "default")
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
		for i, l := range limits {
			if err := os.WriteFile(filepath.Join(d, "gc_thresh"+string(rune('1'+i))), []byte(l+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	read := func(family, name string) string {
		b, err := os.ReadFile(filepath.Join(dir, "net", family, "neigh", "default", name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	write("ipv4", "128", "512", "1024")
	write("ipv6", "128", "512", "65536") // an administrator's
	if raised, err := RaiseNeighbours(Sysctls(dir), 16384); !raised || err != nil {
		t.Fatal(raised, err)
	}
	if got := read("ipv4", "gc_thresh1") + read("ipv4", "gc_thresh2") + read("ipv4", "gc_thresh3"); got != "4096819216384" {
		t.Errorf("IPv4: %s", got)
	}
	if got := read("ipv6", "gc_thresh3"); got != "65536\n" {
		t.Errorf("IPv6: %q", got)
	}
	if raised, err := RaiseNeighbours(Sysctls(dir), 16384); raised || err != nil {
		t.Error("a second time:", raised, err)
	}
	if raised, err := RaiseNeighbours(Sysctls(t.TempDir()), 16384); raised || err != nil {
		t.Error("without limits:", raised, err)
	}
}
