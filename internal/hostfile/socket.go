package hostfile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Socket is a listening unix socket that weft made.
type Socket struct {
	net.Listener
	path string
	dev  uint64
	ino  uint64
}

// Listen makes a socket at path that only the owner of the process can open. It makes the
// folder if it is not there; others can pass through that to files that are for them, and
// cannot list it. It replaces a socket on which no process listens, and nothing else.
func Listen(path string) (*Socket, error) {
	l, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

func listen(path string) (*Socket, error) {
	if err := Shared(filepath.Dir(path), SocketsMode); err != nil {
		return nil, err
	}
	if err := removeDead(path); err != nil {
		return nil, err
	}
	// The mode of a socket that has no path yet is that of the file which bind makes: nobody
	// can connect before it is right. See unix_bind_bsd in net/unix/af_unix.c.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
			return cerr
		}
		return err
	}}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	s := &Socket{Listener: l, path: path}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		l.Close()
		return nil, err
	}
	s.dev, s.ino = st.Dev, st.Ino
	return s, nil
}

// RemoveDead removes a socket on which no process listens, if there is one. It returns an error
// if there is something else.
func RemoveDead(path string) error {
	if err := removeDead(path); err != nil {
		return fmt.Errorf("remove the socket %s: %w", path, err)
	}
	return nil
}

func removeDead(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("there is something else, of mode %v", info.Mode())
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	// Other errors do not say that nobody listens, for example EAGAIN if many clients wait, or
	// EPROTOTYPE if it is a socket of another type.
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return errors.New("another process already listens there")
	}
	return os.Remove(path)
}

// ShareAs gives the socket the owner and mode of the socket at another path, so that the same
// users may open both. Folders stay as they are.
func (s *Socket) ShareAs(other string) error {
	info, err := os.Stat(other)
	if err != nil {
		return fmt.Errorf("share %s: %w", s.path, err)
	}
	like, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("share %s as %s: that is no socket", s.path, other)
	}
	fd, err := unix.Open(s.path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("share %s: %w", s.path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("share %s: %w", s.path, err)
	}
	if st.Dev != s.dev || st.Ino != s.ino {
		return fmt.Errorf("share %s: somebody has replaced it", s.path)
	}
	if err := unix.Fchownat(fd, "", int(like.Uid), int(like.Gid), unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("share %s: change its owner: %w", s.path, err)
	}
	// fchmod(2) takes no descriptor of O_PATH.
	if err := os.Chmod("/proc/self/fd/"+strconv.Itoa(fd), info.Mode().Perm()); err != nil {
		return fmt.Errorf("share %s: change its mode: %w", s.path, err)
	}
	return nil
}
