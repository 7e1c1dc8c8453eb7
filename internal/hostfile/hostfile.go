// Package hostfile makes files and folders at paths that users name, and changes nothing
// there that weft did not make.
//
// A router runs as root, and a path such as /tmp/x/weft.sock may lie in a folder where
// others put files, links and folders of their own. Before weft makes anything in a
// folder, this package checks who can replace it: every folder on the way must belong to
// root, or to the user whom the process runs as, and others may write to it only if it is
// sticky, as /tmp is. A symbolic link must belong to the same users. What passes can only be
// changed by them, so that there is no race with others. Folders that are there keep their
// mode and owner.
//
// All functions are safe for concurrent use.
package hostfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxLinks is the most symbolic links on a path, as in the kernel.
const maxLinks = 40

// Modes of folders that this package makes.
const (
	PrivateMode fs.FileMode = 0o700
	// SocketsMode is for folders with sockets: others can pass through to those that are for
	// them, and cannot list the folder.
	SocketsMode fs.FileMode = 0o711
)

// Private makes the folder dir, for the owner of the process only, and its parents if they are
// not there. It returns an error if anybody else can replace the folder or write to it.
func Private(dir string) error {
	// Sockets for others may be in the same parent.
	if err := makeAll(filepath.Dir(filepath.Clean(dir)), SocketsMode); err != nil {
		return err
	}
	if err := makeAll(dir, PrivateMode); err != nil {
		return err
	}
	return check(dir, true)
}

// Shared makes the folder dir and its parents, with that mode, if they are not there. It
// returns an error if anybody else can replace files of weft in it. The folder may be sticky,
// as /tmp is.
func Shared(dir string, mode fs.FileMode) error {
	if err := makeAll(dir, mode); err != nil {
		return err
	}
	return check(dir, false)
}

// Append opens a file to append to it, and makes it, for the owner of the process only, if
// it is not there. It returns an error if somebody else can replace the file or owns it, or
// if it is a link or no file.
func Append(path string) (_ *os.File, err error) {
	if err := check(filepath.Dir(path), false); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch uid, several := owner(info); {
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("open %s: it is no file", path)
	case !trusted(uid):
		return nil, fmt.Errorf("open %s: it belongs to user %d", path, uid)
	case several:
		return nil, fmt.Errorf("open %s: it has another name too", path)
	}
	return f, nil
}

// OthersRead reports whether users other than root and the owner of the process can read the
// file at path, as far as modes say.
func OthersRead(path string) (bool, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return false, err
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return false, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	uid, _ := owner(info)
	if !trusted(uid) {
		return true, nil
	}
	if info.Mode().Perm()&0o044 == 0 {
		return false, nil
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return false, err
		}
		if uid, _ := owner(info); trusted(uid) && info.Mode().Perm()&0o011 == 0 {
			return false, nil
		}
		if dir == "/" {
			return true, nil
		}
	}
}

// makeAll makes dir and the parents that are not there. Only what it makes gets the mode.
func makeAll(dir string, mode fs.FileMode) error {
	dir = filepath.Clean(dir)
	if info, err := os.Stat(dir); err == nil {
		if !info.IsDir() {
			return fmt.Errorf("make folder %s: it is no folder", dir)
		}
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := makeAll(parent, mode); err != nil {
			return err
		}
		if err := check(parent, false); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, mode); errors.Is(err, fs.ErrExist) {
		return nil // somebody else was faster; the caller checks who
	} else if err != nil {
		return err
	}
	return os.Chmod(dir, mode) // whatever the umask is
}

// check returns an error if somebody else can replace what is at dir, or what weft makes
// there. If the folder is private, others must not write to it at all.
func check(dir string, private bool) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	at, rest, links := "/", strings.TrimPrefix(dir, "/"), 0
	for {
		if err := checkFolder(dir, at, private && rest == ""); err != nil || rest == "" {
			return err
		}
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		if name == "" || name == "." {
			continue
		}
		next := filepath.Join(at, name) // .. of a folder that was checked is one too
		info, err := os.Lstat(next)
		if err != nil {
			return fmt.Errorf("look at folder %s: %w", dir, err)
		}
		if info.Mode().Type() != fs.ModeSymlink {
			at = next
			continue
		}
		if uid, _ := owner(info); !trusted(uid) {
			return fmt.Errorf("use folder %s: the link %s belongs to user %d, who can replace it", dir, next, uid)
		}
		if links++; links > maxLinks {
			return fmt.Errorf("use folder %s: too many links", dir)
		}
		target, err := os.Readlink(next)
		if err != nil {
			return fmt.Errorf("use folder %s: %w", dir, err)
		}
		if strings.HasPrefix(target, "/") {
			at = "/"
		}
		rest = strings.TrimPrefix(target+"/"+rest, "/")
	}
}

// checkFolder checks one folder on the way to dir.
func checkFolder(dir, at string, private bool) error {
	info, err := os.Stat(at)
	if err != nil {
		return fmt.Errorf("use folder %s: %w", dir, err)
	}
	uid, _ := owner(info)
	othersWrite := info.Mode().Perm()&0o022 != 0
	switch {
	case !info.IsDir():
		return fmt.Errorf("use folder %s: %s is no folder", dir, at)
	case !trusted(uid):
		return fmt.Errorf("use folder %s: %s belongs to user %d, who can replace what is in it; name a folder of root's", dir, at, uid)
	case othersWrite && (private || info.Mode()&fs.ModeSticky == 0):
		return fmt.Errorf("use folder %s: others can write to %s, which has mode %04o; name another folder, or take the right away with: chmod go-w %[2]s", dir, at, info.Mode().Perm())
	}
	return nil
}

// owner returns the user who owns a file, and whether the file has several names.
func owner(info fs.FileInfo) (uid uint32, several bool) {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ^uint32(0), true
	}
	return s.Uid, s.Nlink > 1
}

// overflowUser is how the kernel shows users who do not exist in a user namespace. Root of the
// namespace cannot be any of them, and the host's root is one.
const overflowUser = 65534

// trusted reports whether a user could control the process anyway.
func trusted(uid uint32) bool {
	return uid == 0 || uid == uint32(os.Geteuid()) || uid == overflowUser && inUserNamespace()
}

// inUserNamespace reports whether the process sees only a part of the host's users.
func inUserNamespace() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(b)), " ") != "0 0 4294967295"
}
