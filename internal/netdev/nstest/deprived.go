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

// withoutSysAdminVar names the running test in the process that WithoutSysAdmin starts.
const withoutSysAdminVar = "WEFT_TEST_DEPRIVED"

// WithoutSysAdmin runs the calling test again in a process that is root in its own
// network namespace and has no CAP_SYS_ADMIN, as in a container. It returns true in that
// process, and false in the original one once the test has passed there.
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
		runtime.LockOSThread() // never unlocked: the thread ends with its reduced rights
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

// dropSysAdmin moves the calling thread into a namespace and drops CAP_SYS_ADMIN for the
// processes that it starts.
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
