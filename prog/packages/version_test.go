package main

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestPackageVersion(t *testing.T) {
	at := time.Date(2026, 11, 26, 7, 30, 0, 0, time.UTC)
	for description, want := range map[string]string{
		"":                         "0.0.0",
		"3f2c9a1":                  "0.0.0+20261126073000.g3f2c9a1",
		"3f2c9a1-dirty":            "0.0.0+20261126073000.g3f2c9a1.dirty",
		"v1.2.0-0-g3f2c9a1":        "1.2.0",
		"v1.2.0-7-g3f2c9a1":        "1.2.0+7.g3f2c9a1",
		"v1.2.0-0-g3f2c9a1-dirty":  "1.2.0+0.g3f2c9a1.dirty",
		"v1.2.0-rc1-0-g3f2c9a1":    "1.2.0~rc1",
		"v1.2.0-beta.2-3-g3f2c9a1": "1.2.0~beta.2+3.g3f2c9a1",
	} {
		got, err := packageVersion(description, at)
		if err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", description, got, err, want)
		}
	}
	for _, bad := range []string{"release-1", "v1.2-0-gabc", "v1.2.0", "1.2.0-0-gabc", "v1.2.0-0-gabc\n"} {
		if got, err := packageVersion(bad, at); err == nil {
			t.Errorf("%q: %q, want it refused", bad, got)
		}
	}
}

// dpkg considers a later version an upgrade.
func TestPackageVersionsSort(t *testing.T) {
	if _, err := exec.LookPath("dpkg"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("dpkg is missing, which compares versions")
		}
		t.Skip("dpkg is missing, which compares versions")
	}
	order := []string{"0.0.0+20261126073000.g3f2c", "0.0.0+20261126073001.g0000", "1.2.0~rc1", "1.2.0~rc1+2.gabc", "1.2.0", "1.2.0+7.g3f2c", "1.2.1~rc1"}
	for i := 1; i < len(order); i++ {
		if err := exec.Command("dpkg", "--compare-versions", order[i-1], "lt", order[i]).Run(); err != nil {
			t.Errorf("%s does not come before %s: %v", order[i-1], order[i], err)
		}
	}
}
