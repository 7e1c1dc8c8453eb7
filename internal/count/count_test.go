package count

import "testing"

func TestOf(t *testing.T) {
	for want, got := range map[string]string{
		"0 hosts":                     Of(0, "host", "hosts"),
		"1 host":                      Of(1, "host", "hosts"),
		"2 hosts":                     Of(2, "host", "hosts"),
		"1 IP":                        Of(1.0, "IP", "IPs"),
		"1048576 IPs":                 Of(float64(1<<20), "IP", "IPs"),
		"18446744073709551615 frames": Of(^uint64(0), "frame", "frames"),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
