package hostfile

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const stranger = 12345 // a user other than root

// folder makes a folder of that owner and mode in dir.
func folder(t *testing.T, dir, name string, uid int, mode fs.FileMode) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, uid, uid); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// short returns a folder whose paths fit into the address of a socket.
func short(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hostfile")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode()
}

func asRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, who can make files of other users")
	}
}

func TestFoldersThatOthersCanReplace(t *testing.T) {
	asRoot(t)
	dir := t.TempDir()
	sticky := folder(t, dir, "sticky", 0, 0o777|fs.ModeSticky)
	open := folder(t, dir, "open", 0, 0o777)
	theirs := folder(t, dir, "theirs", stranger, 0o755)
	group := folder(t, dir, "group", 0, 0o775)
	fine := folder(t, dir, "fine", 0, 0o755)
	for name, target := range map[string]string{
		filepath.Join(dir, "link"): fine, filepath.Join(dir, "loop"): "loop", filepath.Join(dir, "rel"): "./fine/../fine",
		filepath.Join(sticky, "link"): fine, filepath.Join(dir, "toTheirs"): theirs,
	} {
		if err := os.Symlink(target, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Lchown(filepath.Join(sticky, "link"), stranger, stranger); err != nil {
		t.Fatal(err)
	}
	folder(t, sticky, "theirs", stranger, 0o755)
	folder(t, sticky, "ours", 0, 0o755)
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path            string
		private, shared bool // whether it is accepted
	}{
		{fine, true, true}, {filepath.Join(fine, "new", "newer"), true, true},
		{sticky, false, true}, {filepath.Join(sticky, "new"), true, true}, {filepath.Join(sticky, "ours", "x"), true, true},
		{filepath.Join(sticky, "theirs"), false, false}, {filepath.Join(sticky, "theirs", "x"), false, false},
		{filepath.Join(sticky, "link"), false, false}, {filepath.Join(sticky, "link", "x"), false, false},
		{open, false, false}, {filepath.Join(open, "x"), false, false}, {theirs, false, false}, {filepath.Join(theirs, "x", "y"), false, false},
		{group, false, false}, {filepath.Join(group, "x"), false, false},
		{filepath.Join(dir, "link"), true, true}, {filepath.Join(dir, "link", "y"), true, true}, {filepath.Join(dir, "rel"), true, true},
		{filepath.Join(dir, "toTheirs"), false, false}, {filepath.Join(dir, "loop"), false, false},
		{filepath.Join(dir, "file"), false, false}, {filepath.Join(dir, "file", "x"), false, false},
	} {
		if err := Private(c.path); (err == nil) != c.private {
			t.Errorf("private %s: %v", c.path, err)
		}
		if err := Shared(c.path, 0o755); (err == nil) != c.shared {
			t.Errorf("shared %s: %v", c.path, err)
		}
	}
	for path, want := range map[string]fs.FileMode{sticky: 0o777, open: 0o777, theirs: 0o755, group: 0o775, fine: 0o755} {
		if got := mode(t, path).Perm(); got != want {
			t.Errorf("%s: mode %v, was %v", path, got, want)
		}
	}
	for _, path := range []string{filepath.Join(open, "x"), filepath.Join(theirs, "x"), filepath.Join(group, "x"), filepath.Join(fine, "x")} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s was made before its parents were checked", path)
		}
	}
}

func TestModesOfWhatIsMade(t *testing.T) {
	dir := short(t)
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	if err := Shared(filepath.Join(dir, "a", "b"), 0o711); err != nil {
		t.Fatal(err)
	}
	unix.Umask(0)
	if err := Private(filepath.Join(dir, "c")); err != nil {
		t.Fatal(err)
	}
	s, err := Listen(filepath.Join(dir, "d", "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for path, want := range map[string]fs.FileMode{"a": 0o711, "a/b": 0o711, "c": 0o700, "d": 0o711, "d/s": 0o600} {
		if got := mode(t, filepath.Join(dir, path)).Perm(); got != want {
			t.Errorf("%s: mode %v, want %v", path, got, want)
		}
	}
}

// Sharing a socket in a folder of others changes the socket only.
func TestShareChangesTheSocketOnly(t *testing.T) {
	asRoot(t)
	dir := short(t)
	tmp := folder(t, dir, "tmp", 0, 0o777|fs.ModeSticky)
	engine, err := net.Listen("unix", filepath.Join(dir, "engine"))
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	if err := os.Chown(filepath.Join(dir, "engine"), 0, stranger); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "engine"), 0o660); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(tmp, "p.sock")
	s, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.ShareAs(filepath.Join(dir, "engine")); err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Gid != stranger || st.Uid != 0 || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket has mode %v and group %d", info.Mode(), st.Gid)
	}
	if got := mode(t, tmp); got.Perm() != 0o777 || got&fs.ModeSticky == 0 {
		t.Errorf("the folder has mode %v now", got)
	}

	// Somebody puts a link to another file into its place.
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, path); err != nil {
		t.Fatal(err)
	}
	if err := s.ShareAs(filepath.Join(dir, "engine")); err == nil || mode(t, secret).Perm() != 0o600 {
		t.Errorf("shared a link: %v, and the file has mode %v", err, mode(t, secret))
	}
	if err := s.ShareAs(secret); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("shared as a file: %v", err)
	}
}

func TestListenReplacesDeadSocketsOnly(t *testing.T) {
	dir := short(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(path("file"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("file", path("link")); err != nil {
		t.Fatal(err)
	}
	datagrams, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path("datagrams"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	// A process that listens and accepts nobody, with a full queue.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path("full")}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	for {
		c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(c)
		if unix.Connect(c, &unix.SockaddrUnix{Name: path("full")}) != nil {
			break
		}
	}
	for _, name := range []string{"file", "link", "datagrams", "full"} {
		before := mode(t, path(name))
		if s, err := Listen(path(name)); err == nil {
			s.Close()
			t.Errorf("%s was replaced", name)
		} else if mode(t, path(name)) != before {
			t.Errorf("%s is not as before", name)
		}
	}
	dead, err := Listen(path("dead"))
	if err != nil {
		t.Fatal(err)
	}
	dead.Listener.(*net.UnixListener).SetUnlinkOnClose(false)
	dead.Close()
	again, err := Listen(path("dead"))
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestAppend(t *testing.T) {
	asRoot(t)
	dir := t.TempDir()
	sticky := folder(t, dir, "sticky", 0, 0o777|fs.ModeSticky)
	write := func(name string, uid int) string {
		path := filepath.Join(sticky, name)
		if err := os.WriteFile(path, []byte("first\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, uid, uid); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ours := write("ours", 0)
	theirs := write("theirs", stranger)
	twice := write("twice", 0)
	if err := os.Link(twice, filepath.Join(sticky, "linked")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(ours, filepath.Join(sticky, "link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(sticky, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		ours: true, filepath.Join(sticky, "new"): true, theirs: false, twice: false, filepath.Join(sticky, "link"): false,
		filepath.Join(sticky, "fifo"): false, sticky: false, filepath.Join(dir, "none", "x"): false,
	} {
		f, err := Append(path)
		if (err == nil) != want {
			t.Errorf("append to %s: %v", path, err)
		}
		if err == nil {
			f.WriteString("second\n")
			f.Close()
		}
	}
	if b, err := os.ReadFile(ours); err != nil || string(b) != "first\nsecond\n" {
		t.Errorf("the file has %q, %v", b, err)
	}
	if got := mode(t, filepath.Join(sticky, "new")).Perm(); got != 0o600 {
		t.Errorf("a new file has mode %v", got)
	}
}

func TestOthersRead(t *testing.T) {
	asRoot(t)
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	open, closed := folder(t, dir, "open", 0, 0o755), folder(t, dir, "closed", 0, 0o700)
	for _, c := range []struct {
		dir, name string
		uid       int
		mode      fs.FileMode
		want      bool
	}{
		{open, "a", 0, 0o600, false}, {open, "b", 0, 0o644, true}, {open, "c", 0, 0o640, true}, {open, "d", stranger, 0o600, true},
		{closed, "e", 0, 0o644, false}, {closed, "f", stranger, 0o600, true},
	} {
		path := filepath.Join(c.dir, c.name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, c.uid, c.uid); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		if got, err := OthersRead(path); got != c.want || err != nil {
			t.Errorf("%s of user %d and mode %v: %v, %v", path, c.uid, c.mode, got, err)
		}
	}
	if _, err := OthersRead(filepath.Join(dir, "none")); err == nil {
		t.Error("a file that is not there can be read or not")
	}
}
