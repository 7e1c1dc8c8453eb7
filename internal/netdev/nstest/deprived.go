package nstest

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// deprivedVar names, in the process that Deprived starts, the test that it is for.
const withoutSysAdminVar = "WEFT_TEST_DEPRIVED"

// Deprived has a test run in a process that is root in a network namespace of its own
// and has no CAP_SYS_ADMIN, as a container has it. It returns true in that process;
// to the caller it returns false once the test has passed there.
func WithoutSysAdmin(t *testing.T) bool {
	t.Helper()
	if os.Getenv(withoutSysAdminVar) == t.Name() {
		if err := unix.Unshare(unix.CLONE_NEWNET); !errors.Is(err, unix.EPERM) {
			t.Fatalf("without CAP_SYS_ADMIN: make a network namespace: %v, want %v", err, unix.EPERM)
		}
		return true
	}
	ns, err := netns.GetFromPath(New(t, "deprived"))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	again := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=2m")
	again.Env = append(os.Environ(), withoutSysAdminVar+"="+t.Name())
	var out strings.Builder
	again.Stdout, again.Stderr = &out, &out
	again.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	ended := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with what it lacks
		if err := dropSysAdmin(ns); err != nil {
			ended <- err
			return
		}
		ended <- again.Run()
	}()
	if err := <-ended; err != nil {
		t.Fatalf("without CAP_SYS_ADMIN: %v\n%s", err, out.String())
	}
	return false
}

// deprive takes the calling thread to a namespace, and CAP_SYS_ADMIN from what it
// starts.
func dropSysAdmin(ns netns.NsHandle) error {
	if err := netns.Set(ns); err != nil {
		return err
	}
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(header, &sets[0]); err != nil {
		return err
	}
	sets[0].Inheritable &^= 1 << unix.CAP_SYS_ADMIN
	return errors.Join(unix.Capset(header, &sets[0]), unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_ADMIN, 0, 0, 0))
}
