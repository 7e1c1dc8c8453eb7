package kernel

import "testing"

// TestMountedIn has the lines that kernels write of a file system of type bpf.
func TestMountedIn(t *testing.T) {
	const dir = "/run/weft/bpf"
	for what, c := range map[string]struct {
		line string
		ours bool
	}{
		"weft's":                     {"90 23 0:44 / /run/weft/bpf rw,nosuid,nodev,noexec,relatime shared:40 - bpf weft rw,mode=700", true},
		"weft's, before Linux 5.17":  {"90 23 0:44 / /run/weft/bpf rw,nosuid,nodev,noexec,relatime shared:40 - bpf none rw,mode=700", true},
		"another's":                  {"90 23 0:44 / /run/weft/bpf rw,relatime - bpf bpffs rw", false},
		"a folder of the host's":     {"90 23 0:30 /weft /run/weft/bpf rw,relatime - bpf bpf rw,mode=700", false},
		"a folder, before 5.17":      {"90 23 0:30 /weft /run/weft/bpf rw,relatime - bpf none rw,mode=700", false},
		"elsewhere":                  {"90 23 0:44 / /sys/fs/bpf rw,relatime - bpf none rw,mode=700", false},
		"elsewhere, with its prefix": {"90 23 0:44 / /run/weft/bpf2 rw,relatime - bpf weft rw,mode=700", false},
		"another file system":        {"90 23 0:44 / /run/weft/bpf rw,relatime - tmpfs none rw", false},
		"a short line":               {"90 23 - bpf weft", false},
	} {
		text := "23 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n" + c.line + "\n"
		if got := mountedIn(text, dir); got != c.ours {
			t.Errorf("%s: %v, want %v", what, got, c.ours)
		}
	}
}
