package daemon

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// minSpace is the space in bytes below which a state file may fail to grow.
const minSpace = 8 << 20

// diskWarnings says that the state cannot be written, or soon not.
func diskWarnings(dir string) []string {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return []string{fmt.Sprintf("the state folder %s cannot be looked at: %v", dir, err)}
	}
	return spaceWarnings(dir, &fs)
}

func spaceWarnings(dir string, fs *unix.Statfs_t) []string {
	const effect = "what is attached and freed may not be recorded until that changes"
	switch space := fs.Bavail * uint64(fs.Bsize); {
	case fs.Flags&unix.ST_RDONLY != 0:
		return []string{fmt.Sprintf("the file system of the state folder %s is read-only: %s", dir, effect)}
	case space == 0 || fs.Files > 0 && fs.Ffree == 0:
		return []string{fmt.Sprintf("the file system of the state folder %s is full: %s", dir, effect)}
	case space < minSpace:
		return []string{fmt.Sprintf("the file system of the state folder %s has %d KB left", dir, space>>10)}
	}
	return nil
}
