package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A program that makes sandbox hosts is also their first process and the cleaner. The
// environment variable selects the role.
const (
	roleVar     = "WEFT_SANDBOX_ROLE"
	roleCleaner = "cleaner"
	roleOuter   = "outer" // joins the cgroups, then makes the namespaces
	roleInner   = "inner" // the first process inside
)

// readyFD is a pipe to the program that boots a host. Each of the two processes writes a
// line to it, in any order: outer the process id of inner, and inner readyLine.
const (
	readyFD   = 3
	readyLine = "up"
)

// Main returns at once in an ordinary process. In a process that this package started it
// does the work of its role and exits.
func Main() {
	role := os.Getenv(roleVar)
	if role == "" {
		return
	}
	os.Unsetenv(roleVar)
	var err error
	switch args := os.Args[1:]; role {
	case roleCleaner:
		io.Copy(io.Discard, os.Stdin) // until the program that made the network closes it or ends
		err = cleanUp(args[0], args[1])
	case roleOuter:
		err = outer(args)
	case roleInner:
		err = inner(args[0], args[1])
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "sandbox %s: %v\n", role, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func outer(args []string) error {
	runtime.LockOSThread() // the child is killed when this thread ends
	roots, err := cgroups()
	if err != nil {
		return err
	}
	for _, root := range roots {
		procs := filepath.Join(root, args[2], "cgroup.procs")
		if err := os.WriteFile(procs, []byte("0"), 0o644); err != nil {
			return err
		}
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleVar+"="+roleInner)
	cmd.Stderr = os.Stderr
	ready := os.NewFile(readyFD, "ready")
	defer ready.Close()
	cmd.ExtraFiles = []*os.File{ready}
	cmd.SysProcAttr = &unix.SysProcAttr{
		Pdeathsig: unix.SIGKILL,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWPID |
			unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP,
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	fmt.Fprintln(ready, cmd.Process.Pid)
	ready.Close() // so that the reader sees EOF once inner closes it too
	cmd.Wait()    // inner ends when it is killed
	return nil
}

// inner mounts the host's file systems, then reaps orphaned processes until it is killed.
func inner(dir, name string) error {
	if err := mountFiles(filepath.Join(dir, name), name); err != nil {
		return err
	}
	ready := os.NewFile(readyFD, "ready")
	fmt.Fprintln(ready, readyLine)
	ready.Close()
	for {
		var status unix.WaitStatus
		if _, err := unix.Wait4(-1, &status, 0, nil); errors.Is(err, unix.ECHILD) {
			time.Sleep(20 * time.Millisecond) // until there is a child to wait for
		}
	}
}

// mount is one mount of a sandbox host.
type mount struct {
	what, where, kind string
	flags             uintptr
	data              string
}

func mountFiles(dir, name string) error {
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set the hostname: %w", err)
	}
	hierarchies, err := cgroups()
	if err != nil {
		return err
	}
	v2 := slices.Contains(hierarchies, "/sys/fs/cgroup")
	// The real host's cgroups would stay visible under a new /sys, and runc uses the
	// first ones that it finds.
	if err := mountAll(
		mount{"", "/", "", unix.MS_PRIVATE | unix.MS_REC, ""},
		mount{"proc", "/proc", "proc", 0, ""},
	); err != nil {
		return err
	}
	if err := unix.Unmount("/sys/fs/cgroup", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the real host's cgroups: %w", err)
	}
	if err := unix.Unmount("/sys", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the real host's /sys: %w", err)
	}
	if err := mountAll(mount{"sysfs", "/sys", "sysfs", 0, ""}); err != nil {
		return err
	}
	if v2 {
		err = cgroup2()
	} else {
		err = cgroup1(hierarchies)
	}
	if err != nil {
		return err
	}
	return errors.Join(mountAll(
		mount{"bpf", "/sys/fs/bpf", "bpf", 0, ""},
		mount{"tmpfs", "/run", "tmpfs", 0, "mode=755"},
		mount{"overlay", "/etc", "overlay", 0, overlay("/etc", filepath.Join(dir, "etc"))},
		mount{"overlay", "/opt", "overlay", 0, overlay("/opt", filepath.Join(dir, "opt"))},
		mount{filepath.Join(dir, "var"), "/var", "", unix.MS_BIND, ""},
		mount{"tmpfs", "/dev/shm", "tmpfs", 0, ""},
		mount{"", "/", "", unix.MS_SHARED | unix.MS_REC, ""}, // the default of systemd, which dockerd needs
	), writeIdentity(name))
}

func overlay(lower, upper string) string {
	return fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s-work", lower, upper, upper)
}

func mountAll(list ...mount) error {
	for _, m := range list {
		if err := unix.Mount(m.what, m.where, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.where, err)
		}
	}
	return nil
}

// cgroup1 mounts each hierarchy again, with the sandbox host's cgroup as its root.
func cgroup1(hierarchies []string) error {
	const root = "/sys/fs/cgroup"
	if err := mountAll(mount{"tmpfs", root, "tmpfs", 0, "mode=755"}); err != nil {
		return err
	}
	for _, dir := range hierarchies {
		m := mount{"cgroup", dir, "cgroup", 0, filepath.Base(dir)}
		switch filepath.Base(dir) {
		case "unified":
			m.what, m.kind, m.data = "cgroup2", "cgroup2", ""
		case "systemd":
			m.data = "none,name=systemd"
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if err := mountAll(m); err != nil {
			return err
		}
	}
	return nil
}

// cgroup2 mounts the hierarchy again and enables all controllers for child cgroups. It
// moves the processes into a child first, because the kernel refuses that for a cgroup
// with processes.
func cgroup2() error {
	const root = "/sys/fs/cgroup"
	if err := mountAll(mount{"cgroup2", root, "cgroup2", 0, ""}); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(root, "init"), 0o755); err != nil {
		return err
	}
	procs, err := os.ReadFile(filepath.Join(root, "cgroup.procs"))
	if err != nil {
		return err
	}
	for _, pid := range strings.Fields(string(procs)) {
		if err := os.WriteFile(filepath.Join(root, "init", "cgroup.procs"), []byte(pid), 0o644); err != nil {
			return err
		}
	}
	controllers, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, c := range bytes.Fields(controllers) {
		if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), append([]byte("+"), c...), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// writeIdentity writes the files that identify the host, and enables forwarding. It
// configures no name server, so that pulling a missing image fails at once and sends
// nothing.
func writeIdentity(name string) error {
	var errs []error
	for _, d := range []string{"/run/lock", "/run/netns"} {
		errs = append(errs, os.MkdirAll(d, 0o755))
	}
	for path, text := range map[string]string{
		"/etc/hostname":                          name + "\n",
		"/etc/hosts":                             "127.0.0.1 localhost " + name + "\n",
		"/proc/sys/net/ipv4/ip_forward":          "1\n",
		"/proc/sys/net/ipv6/conf/all/forwarding": "1\n",
	} {
		errs = append(errs, os.WriteFile(path, []byte(text), 0o644))
	}
	// It may be a link to a file of another program.
	errs = append(errs, os.RemoveAll("/etc/resolv.conf"), os.WriteFile("/etc/resolv.conf", nil, 0o644))
	return errors.Join(errs...)
}
