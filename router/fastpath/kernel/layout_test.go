package kernel

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
)

// TestTwins compares each struct of bpf/weft.h with its twin, by the types that
// the object carries.
func TestTwins(t *testing.T) {
	spec, err := loadBpf()
	if err != nil {
		t.Fatal(err)
	}
	for name, twin := range map[string]any{
		"mac": MACKey{}, "mac_entry": MACEntry{}, "peer_entry": PeerEntry{}, "remote": Remote{}, "traffic": Traffic{},
		"config": Config{}, "event": Event{}, "neighbour": Neighbour{}, "binding": bindingTwin{},
	} {
		var c *btf.Struct
		if err := spec.Types.TypeByName(name, &c); err != nil {
			t.Errorf("struct %s: %v", name, err)
			continue
		}
		g := reflect.TypeOf(twin)
		if int(c.Size) != int(g.Size()) || len(c.Members) != g.NumField() {
			t.Errorf("struct %s has %d bytes and %d members, its twin %d and %d", name, c.Size, len(c.Members), g.Size(), g.NumField())
			continue
		}
		for i, m := range c.Members {
			f := g.Field(i)
			size, err := btf.Sizeof(m.Type)
			if err != nil {
				t.Fatal(err)
			}
			plain := strings.ReplaceAll(m.Name, "_", "")
			if f.Name != "_" && !strings.EqualFold(plain, f.Name) || f.Offset != uintptr(m.Offset.Bytes()) || f.Type.Size() != uintptr(size) {
				t.Errorf("struct %s has %s at %d with %d bytes, its twin %s at %d with %d", name, m.Name, m.Offset.Bytes(), size, f.Name, f.Offset, f.Type.Size())
			}
		}
	}
	for name, size := range map[string]uint32{bpfMapPeers: MaxPeers, bpfMapTraffic: MaxPeers, bpfMapDrops: uint32(numDrops)} {
		if n := spec.Maps[name].MaxEntries; n != size {
			t.Errorf("map %s has %d entries, want %d", name, n, size)
		}
	}
}

// bindingTwin is Binding as a struct with a name for its one member.
type bindingTwin struct{ Fingerprints Binding }

// TestConstants compares the reasons of drops with enum drop, which is in no
// type of the object, and the other numbers.
func TestConstants(t *testing.T) {
	b, err := os.ReadFile("bpf/weft.h")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(b), "enum drop {")
	list, _, _ = strings.Cut(list, "DROP_COUNT")
	names := regexp.MustCompile(`(?m)^\s+DROP_(\w+),`).FindAllStringSubmatch(list, -1)
	if len(names) != int(numDrops) {
		t.Errorf("enum drop has %d reasons, want %d", len(names), numDrops)
	}
	for i, n := range names {
		if want := strings.ToLower(n[1]); DropReason(i).String() != want {
			t.Errorf("reason %d is %s, want %s", i, DropReason(i), want)
		}
	}
	if s := numDrops.String(); s != fmt.Sprint("drop ", int(numDrops)) {
		t.Errorf("a reason without name is %q", s)
	}
	for name, value := range map[string]string{
		"METADATA_RELAY": "1", "METADATA_ECHO": "2", "PROBE_ASK": "1", "PROBE_ECHO": "2", "REASON_SLOW": "1", "REASON_BIG": "2",
		"MAC_EXPRESS": "1", "PEER_KNOWN": "1", "PEER_FAST": "2", "PEER_EXPRESS": "4", "PEER_DIRECT": "8", "PEER_ANY": "16", "CONFIG_EXPRESS": "1",
		"PEER_PLAIN": "32", "CONFIG_PLAIN": "2", "PROBE_PLAIN": "3",
	} {
		if !regexp.MustCompile(`\b` + name + ` = ` + value + `\b`).Match(b) {
			t.Errorf("%s is not %s", name, value)
		}
	}
}
