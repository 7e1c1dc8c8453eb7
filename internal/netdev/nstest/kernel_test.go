package nstest

import "testing"

func TestBefore(t *testing.T) {
	for _, c := range []struct {
		release      string
		major, minor int
		want         bool
	}{
		{"5.10.0-32-cloud-amd64", 5, 11, true},
		{"5.10.0-32-cloud-amd64", 5, 10, false},
		{"5.10.0-32-cloud-amd64", 6, 2, true},
		{"6.1.0-56-amd64", 5, 11, false},
		{"6.18-rc1", 6, 18, false},
		{"4.19.0", 5, 1, true},
	} {
		if got, err := before(c.release, c.major, c.minor); got != c.want || err != nil {
			t.Errorf("%s before %d.%d: %v, %v", c.release, c.major, c.minor, got, err)
		}
	}
	if _, err := before("plan9", 5, 10); err == nil {
		t.Error("plan9 was accepted as a Linux release")
	}
}
