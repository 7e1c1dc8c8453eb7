package rules_test

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-net/weft/policy/policytest"
	"github.com/weft-net/weft/policy/rules"
)

var update = flag.Bool("update", false, "write the golden files")

// TestCompile compares the rules of sample clusters with golden files. Read the difference before
// you update a golden file.
func TestCompile(t *testing.T) {
	manifests, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(manifests) == 0 {
		t.Fatalf("no manifests: %v", err)
	}
	for _, path := range manifests {
		t.Run(filepath.Base(path), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			s, err := policytest.Manifest(string(text))
			if err != nil {
				t.Fatal(err)
			}
			got := rules.Compile(s, map[netip.Addr]uint32{netip.MustParseAddr("10.32.0.5"): 7}).String()
			golden := strings.TrimSuffix(path, ".yaml") + ".nft"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("the rules differ from %s; if that is intended, run the test with -update\n%s", golden, got)
			}
		})
	}
}
