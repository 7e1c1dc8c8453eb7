package sandbox

import (
	"archive/tar"
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// DockerdVar is the environment variable with the path of a dockerd to test with,
// instead of the one that is installed.
const DockerdVar = "WEFT_TEST_DOCKERD"

// DockerSocket is the path of the engine's socket inside a sandbox host.
const DockerSocket = "/run/docker.sock"

// Dockerd is an engine that runs in a sandbox host.
type Dockerd struct {
	host  *Host
	cmd   *exec.Cmd
	ended chan struct{}
	// Log is the file with its output.
	Log string
}

// StartDockerd starts the engine with its default paths and returns when it
// answers, or when ctx ends.
func (h *Host) StartDockerd(ctx context.Context, flags ...string) (*Dockerd, error) {
	d, err := h.BeginDockerd(flags...)
	if err != nil {
		return nil, err
	}
	return d, d.Wait(ctx)
}

// BeginDockerd starts the engine and returns at once.
func (h *Host) BeginDockerd(flags ...string) (*Dockerd, error) {
	d := &Dockerd{host: h, Log: h.path("dockerd.log"), ended: make(chan struct{})}
	log, err := os.OpenFile(d.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start dockerd on %s: %w", h.Name, err)
	}
	defer log.Close()
	d.cmd = h.Command(context.Background(), cmp.Or(os.Getenv(DockerdVar), "dockerd"), flags...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start dockerd on %s: %w", h.Name, err)
	}
	go func() {
		d.cmd.Wait() // its log says why
		close(d.ended)
	}()
	h.engines = append(h.engines, d)
	return d, nil
}

// Wait waits until the engine answers. The error has the end of its log.
func (d *Dockerd) Wait(ctx context.Context) error {
	for {
		if d.answers() {
			return nil
		}
		select {
		case <-d.ended:
			return fmt.Errorf("dockerd on %s ended: %s", d.host.Name, d.LogTail())
		case <-ctx.Done():
			return fmt.Errorf("dockerd on %s does not answer: %w: %s", d.host.Name, ctx.Err(), d.LogTail())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (d *Dockerd) answers() bool {
	c, err := net.DialTimeout("unix", d.host.Path(DockerSocket), time.Second)
	if err != nil {
		return false
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return false
	}
	fmt.Fprintf(c, "GET /_ping HTTP/1.0\r\n\r\n")
	b, err := io.ReadAll(c)
	return err == nil && strings.Contains(string(b), " 200 ")
}

// LogTail returns the end of the engine's log.
func (d *Dockerd) LogTail() string {
	const most = 3000
	b, err := os.ReadFile(d.Log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-most):])
}

// Signal sends a signal to the engine itself, not to its containerd.
func (d *Dockerd) Signal(ctx context.Context, signal unix.Signal) error {
	_, err := d.host.Run(ctx, "bash", "-c", fmt.Sprintf("kill -%d $(cat /var/run/docker.pid)", signal))
	if err == nil && signal == unix.SIGCONT {
		// nsenter stops itself when its child is stopped, so it must be continued too.
		err = d.cmd.Process.Signal(signal)
	}
	return err
}

// Stop ends the engine with SIGTERM, as systemctl stop does.
func (d *Dockerd) Stop(ctx context.Context) error {
	if err := d.Signal(ctx, unix.SIGTERM); err != nil {
		return err
	}
	return d.waitEnded(ctx)
}

// Kill ends the engine with SIGKILL; its containers keep running.
func (d *Dockerd) Kill(ctx context.Context) error {
	if err := d.Signal(ctx, unix.SIGKILL); err != nil {
		return err
	}
	return d.waitEnded(ctx)
}

func (d *Dockerd) waitEnded(ctx context.Context) error {
	select {
	case <-d.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("dockerd on %s does not end: %w", d.host.Name, ctx.Err())
	}
}

// Image is the name of the image that LoadImage loads. It has only busybox, and sh as its
// command.
const Image = "weft-test/busybox"

// LoadImage loads Image into the host's engine, without a registry.
func (h *Host) LoadImage(ctx context.Context) error {
	const busybox = "/bin/busybox"
	applets, err := exec.CommandContext(ctx, busybox, "--list").Output()
	if err != nil {
		return fmt.Errorf("make an image: list the applets of %s: %w", busybox, err)
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		return fmt.Errorf("make an image: %w", err)
	}
	cmd := h.Command(ctx, "docker", "import", "-c", `CMD ["sh"]`, "-", Image)
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	go func() {
		writeImage(in, program, strings.Fields(string(applets))) // import fails if this does
		in.Close()
	}()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("load an image on %s: %w: %s", h.Name, err, out)
	}
	return nil
}

// writeImage writes the tar archive of a root file system with busybox and links to it.
func writeImage(w io.Writer, busybox []byte, applets []string) error {
	t := tar.NewWriter(w)
	for _, d := range []string{"bin", "etc", "tmp", "proc", "sys", "dev", "root", "var"} {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755}); err != nil {
			return err
		}
	}
	for _, f := range []struct {
		name string
		mode int64
		body []byte
	}{{"bin/busybox", 0o755, busybox}, {"etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\n")}} {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(f.body))}); err != nil {
			return err
		}
		if _, err := t.Write(f.body); err != nil {
			return err
		}
	}
	for _, a := range applets {
		if a == "busybox" {
			continue
		}
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + a, Linkname: "busybox", Mode: 0o777}); err != nil {
			return err
		}
	}
	return t.Close()
}
