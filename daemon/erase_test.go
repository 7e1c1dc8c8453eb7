package daemon

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/hostfile"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
)

// Erase removes the socket of a router that was killed, and nothing else at its path.
func TestEraseLeavesOtherSockets(t *testing.T) {
	dir, err := os.MkdirTemp("", "weft") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "run", "s")
	erase := func(driver string) error {
		return netdev.Do(nstest.New(t, filepath.Base(driver)), func() error {
			return Erase(&Config{
				StateDir: filepath.Join(dir, "state"), Socket: socket, Bridge: "weft",
				Docker: DockerConfig{Host: "unix:///nowhere", Driver: true, DriverSocket: driver},
			})
		})
	}
	dead, err := api.ListenUnix(socket)
	if err != nil {
		t.Fatal(err)
	}
	dead.(*hostfile.Socket).Listener.(*net.UnixListener).SetUnlinkOnClose(false)
	dead.Close()
	if err := erase(filepath.Join(dir, "none")); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Dir(socket)); err == nil {
		t.Error("the dead socket or its folder is left")
	}
	alive, err := api.ListenUnix(filepath.Join(dir, "alive"))
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"alive", "file"} {
		if err := erase(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Reset removes what a router made, and neither the folders nor the files of others.
func TestEraseLeavesWhatOthersMade(t *testing.T) {
	for _, c := range []struct {
		name   string
		mode   fs.FileMode
		files  []string // besides those of weft
		stays  bool
		remain []string
	}{
		{"made", 0o700, nil, false, nil},
		{"weft", 0o755, nil, false, nil},
		{"ofOthers", 0o755, nil, true, nil},
		{"[a-z]*", 0o700, nil, false, nil}, // no pattern
		{"withFiles", 0o700, []string{"weft.db.bak", "weft.database", "x"}, true, []string{"weft.database", "weft.db.bak", "x"}},
	} {
		dir := filepath.Join(t.TempDir(), c.name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, c.mode); err != nil {
			t.Fatal(err)
		}
		for _, f := range append([]string{storeFile, storeFile + ".corrupt-1", ipamFile + ".layout-12", ipam6File, identityFile, LogFile}, c.files...) {
			if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		err := netdev.Do(nstest.New(t, "host"), func() error {
			return Erase(&Config{StateDir: dir, Socket: filepath.Join(t.TempDir(), "s"), Bridge: "weft"})
		})
		if err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(dir)
		if (err == nil) != c.stays || len(entries) != len(c.remain) {
			t.Errorf("%s of mode %v: %v, and it has %v", c.name, c.mode, err, entries)
			continue
		}
		for i, e := range entries {
			if e.Name() != c.remain[i] {
				t.Errorf("%s has %s, want %s", c.name, e.Name(), c.remain[i])
			}
		}
	}
}
