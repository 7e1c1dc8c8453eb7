package netdev

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Limit is a table of the kernel. When one that all network namespaces of the host share is full,
// connections of containers fail at random.
type Limit struct {
	Name      string // in a sentence: "the table of ..."
	Used, Max uint64 // Max is 0 if it is not known
	Refused   uint64 // entries that did not fit, since the host booted
	Advice    string // what to do
}

// nearlyFull is the share of a table, in per cent, from which it counts as nearly full.
const nearlyFull = 90

// NearlyFull reports whether there is little space left.
func (l Limit) NearlyFull() bool { return l.Max > 0 && l.Used*100 >= l.Max*nearlyFull }

// maxPorts is how many ports a bridge may have: BR_MAX_PORTS in net/bridge/br_private.h, without
// port 0.
const maxPorts = 1023

// Ports returns how many ports of a bridge the kernel allows, and how many there are. Without the
// bridge there are none.
func Ports(bridge string) (Limit, error) {
	limit := Limit{Name: "the list of ports of bridge " + bridge, Max: maxPorts, Advice: "the kernel allows no more; connect further containers on other hosts"}
	h, err := here()
	if err != nil {
		return limit, fmt.Errorf("count the ports of bridge %s: %w", bridge, err)
	}
	defer h.Close()
	br, ok, err := h.link(bridge)
	if err != nil || !ok {
		return limit, err
	}
	links, err := h.links()
	if err != nil {
		return limit, fmt.Errorf("count the ports of bridge %s: %w", bridge, err)
	}
	for _, l := range links {
		if l.Attrs().MasterIndex == br.Attrs().Index {
			limit.Used++
		}
	}
	return limit, nil
}

// limits has where the kernel shows each table: file of counters, column of refusals, and the
// sysctl of the limit (ip-sysctl.rst and nf_conntrack-sysctl.rst of the kernel's documentation).
var limits = []struct {
	name, stat, refused string
	max                 []string
	advice              string
}{
	{"IPv4 neighbours", "arp_cache", "table_fulls", []string{"net", "ipv4", "neigh", "default", "gc_thresh3"},
		"sysctl -w net.ipv4.neigh.default.gc_thresh2=8192 net.ipv4.neigh.default.gc_thresh3=16384"},
	{"IPv6 neighbours", "ndisc_cache", "table_fulls", []string{"net", "ipv6", "neigh", "default", "gc_thresh3"},
		"sysctl -w net.ipv6.neigh.default.gc_thresh2=8192 net.ipv6.neigh.default.gc_thresh3=16384"},
	{"connections (conntrack)", "nf_conntrack", "drop", []string{"net", "netfilter", "nf_conntrack_max"},
		"sysctl -w net.netfilter.nf_conntrack_max=1048576"},
}

// Limits returns the tables that the kernel has. Those of the calling thread's network namespace
// are read where they differ.
func Limits(s Sysctls) (out []Limit, err error) {
	for _, t := range limits {
		b, err := os.ReadFile(filepath.Join("/proc/net/stat", t.stat))
		if errors.Is(err, fs.ErrNotExist) {
			continue // the kernel has no such table
		}
		if err != nil {
			return nil, fmt.Errorf("read the table of %s: %w", t.name, err)
		}
		l := Limit{Name: "the kernel's table of " + t.name, Advice: "raise its limit with: " + t.advice}
		if l.Used, l.Refused, err = parseStat(b, t.refused); err != nil {
			return nil, fmt.Errorf("read the table of %s: %w", t.name, err)
		}
		// A namespace other than the first one has no limit of neighbours.
		if b, err := os.ReadFile(s.Path(t.max...)); err == nil {
			l.Max, _ = strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
		}
		out = append(out, l)
	}
	return out, nil
}

// parseStat reads a file of /proc/net/stat: names of columns, then one line of hexadecimal
// numbers for each CPU. All lines have the same number of entries; refused is a counter of each
// CPU.
func parseStat(b []byte, refused string) (entries, full uint64, err error) {
	lines := strings.Split(strings.TrimSpace(string(bytes.ToValidUTF8(b, nil))), "\n")
	column := -1
	for i, name := range strings.Fields(lines[0]) {
		if name == refused {
			column = i
		}
	}
	if column < 0 || len(lines) < 2 {
		return 0, 0, fmt.Errorf("it has no column %s, or no line", refused)
	}
	for _, line := range lines[1:] {
		words := strings.Fields(line)
		if len(words) <= column {
			return 0, 0, fmt.Errorf("line %q is too short", line)
		}
		if entries, err = strconv.ParseUint(words[0], 16, 64); err != nil {
			return 0, 0, err
		}
		n, err := strconv.ParseUint(words[column], 16, 64)
		if err != nil {
			return 0, 0, err
		}
		full += n
	}
	return entries, full, nil
}

// RaiseNeighbours raises the limits of the tables of neighbours to at least n entries. A flat
// layer 2 needs one for each address that a container talks to, in each container. It reports
// whether it changed something. In a network namespace that has no such limit it does nothing.
func RaiseNeighbours(s Sysctls, n int) (raised bool, err error) {
	for _, family := range []string{"ipv4", "ipv6"} {
		// From the last one: the kernel wants each to be no more than the next.
		for i, want := range []int{n, n / 2, n / 4} {
			key := []string{"net", family, "neigh", "default", fmt.Sprint("gc_thresh", 3-i)}
			b, err := os.ReadFile(s.Path(key...))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return raised, fmt.Errorf("read the limit of %s neighbours: %w", family, err)
			}
			have, err := strconv.Atoi(strings.TrimSpace(string(b)))
			if err != nil {
				return raised, fmt.Errorf("read the limit of %s neighbours: %w", family, err)
			}
			if have >= want {
				continue
			}
			if err := s.Set(strconv.Itoa(want), key...); err != nil {
				return raised, fmt.Errorf("raise the limit of %s neighbours from %d to %d: %w", family, have, want, err)
			}
			raised = true
		}
	}
	return raised, nil
}
