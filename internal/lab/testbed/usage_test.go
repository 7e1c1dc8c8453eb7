package testbed

import (
	"os"
	"testing"
	"time"
)

func TestUsageOfThisProcess(t *testing.T) {
	before, err := Usage(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if before.Resident < 1<<20 {
		t.Errorf("%d bytes resident", before.Resident)
	}
	for {
		now, err := Usage(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if now.CPU >= before.CPU+20*time.Millisecond {
			return // the CPU time of this loop is counted
		}
	}
}

func TestParseStat(t *testing.T) {
	const rest = " S 1 2 3 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 8 0 100 1000000 77 18446744073709551615"
	u, err := parseStat([]byte("12 (a) b ( c)" + rest))
	if err != nil || u.CPU != 2*time.Second || u.Resident != 77*uint64(os.Getpagesize()) {
		t.Errorf("%+v, %v", u, err)
	}
	for _, bad := range []string{"", "12 (a", "12 (a) S 1", "12 (a)" + rest[:40]} {
		if u, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, u)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("12 (a) S 1 2 3 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 8 0 100 1000000 77 1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if u, err := parseStat(b); err == nil && u.CPU < 0 {
			t.Errorf("%q: %v", b, u.CPU)
		}
	})
}
