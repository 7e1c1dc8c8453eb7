package daemon

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestDiskWarnings(t *testing.T) {
	for _, c := range []struct {
		name string
		fs   unix.Statfs_t
		want string
	}{
		{"space", unix.Statfs_t{Bsize: 4096, Bavail: 1 << 20, Files: 100, Ffree: 50}, ""},
		{"no inodes are counted", unix.Statfs_t{Bsize: 4096, Bavail: 1 << 20}, ""},
		{"little", unix.Statfs_t{Bsize: 4096, Bavail: 100, Files: 100, Ffree: 50}, "has 400 KB left"},
		{"full", unix.Statfs_t{Bsize: 4096, Files: 100, Ffree: 50}, "is full"},
		{"out of inodes", unix.Statfs_t{Bsize: 4096, Bavail: 1 << 20, Files: 100}, "is full"},
		{"read-only", unix.Statfs_t{Bsize: 4096, Bavail: 1 << 20, Flags: unix.ST_RDONLY}, "is read-only"},
	} {
		got := strings.Join(spaceWarnings("/s", &c.fs), "; ")
		if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	if got := diskWarnings(t.TempDir() + "/none"); len(got) != 1 {
		t.Errorf("of a folder that is missing: %q", got)
	}
}
