package cmd

import (
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/api"
)

// The status of a change shows the fingerprint of a password, and does not pass it off as the
// password.
func TestRotationStatusShowsAFingerprint(t *testing.T) {
	const id = "0123456789abcdef"
	at := time.Date(2030, 1, 1, 15, 4, 5, 0, time.Local)
	for _, test := range []struct {
		name string
		api.Rotation
		want string
	}{
		{"no change", api.Rotation{Target: id, Step: api.StepFinished},
			"No change is under way. The password of this host has the fingerprint 0123456789abcdef; hosts with the same password show the same one.\n"},
		{"by order", api.Rotation{Target: id, Running: true, Ordered: true, By: "02:00:00:00:00:02(h2)", Since: at},
			"The password is being changed to the one with the fingerprint 0123456789abcdef, by order of 02:00:00:00:00:02(h2) at 2030-01-01 15:04:05.\n"},
		{"by files", api.Rotation{Target: id, Running: true},
			"The password is being changed to the one with the fingerprint 0123456789abcdef, which the configuration of this host has.\n"},
	} {
		var b strings.Builder
		printRotation(&b, &test.Rotation)
		if got := b.String(); !strings.HasPrefix(got, test.want) {
			t.Errorf("%s: %q", test.name, got)
		}
	}
}
