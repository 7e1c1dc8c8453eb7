package nstest

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// KernelBefore reports whether this machine runs a Linux older than major.minor. Use it
// if a test can try a kernel feature only through weft itself: otherwise a bug of weft
// would look like a missing feature.
func KernelBefore(t testing.TB, major, minor int) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	older, err := before(unix.ByteSliceToString(u.Release[:]), major, minor)
	if err != nil {
		t.Fatal(err)
	}
	return older
}

// before compares a release like 5.10.0-32-cloud-amd64 to major.minor.
func before(release string, major, minor int) (bool, error) {
	var a, b int
	if _, err := fmt.Sscanf(release, "%d.%d", &a, &b); err != nil {
		return false, fmt.Errorf("read release of the kernel %q: %w", release, err)
	}
	return a < major || a == major && b < minor, nil
}
