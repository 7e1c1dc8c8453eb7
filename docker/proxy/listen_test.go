package proxy

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A proxy whose socket is in a folder of others, like /tmp, gives the socket the owner and
// mode of the engine's, and leaves the folder alone.
func TestListenLeavesTheFolderAlone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, who can make files of other users")
	}
	dir, err := os.MkdirTemp("", "proxy") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777|fs.ModeSticky); err != nil {
		t.Fatal(err)
	}
	engine := filepath.Join(dir, "engine.sock")
	up, err := net.Listen("unix", engine)
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	share := func(gid int, mode fs.FileMode) {
		t.Helper()
		if err := os.Chown(engine, 0, gid); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(engine, mode); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "p.sock")
	check := func(gid uint32, mode fs.FileMode) {
		t.Helper()
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st := info.Sys().(*syscall.Stat_t); st.Uid != 0 || st.Gid != gid || info.Mode().Perm() != mode {
			t.Errorf("the socket has mode %v and owner %d:%d", info.Mode(), st.Uid, st.Gid)
		}
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o777 || info.Mode()&fs.ModeSticky == 0 {
			t.Errorf("the folder has mode %v, %v", info.Mode(), err)
		}
	}
	share(4321, 0o660)
	l, err := Listen("unix://"+path, TLS{}, "unix://"+engine)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	check(4321, 0o660)
	share(4322, 0o600) // an engine that started again
	if err := l.Share("unix://" + engine); err != nil {
		t.Fatal(err)
	}
	check(4322, 0o600)
	for _, none := range []string{"unix://" + filepath.Join(dir, "none"), "tcp://127.0.0.1:1"} {
		if err := l.Share(none); err != nil {
			t.Errorf("share as %s: %v", none, err)
		}
	}
	check(4322, 0o600)
}
