package daemon

import (
	"net"
	"path/filepath"
	"testing"
	"time"
)

// sd_notify(3): one datagram, at a path or at an abstract name.
func TestNotifyReady(t *testing.T) {
	dir := t.TempDir()
	for _, addr := range []string{filepath.Join(dir, "notify"), "@" + filepath.Join(dir, "notify")} {
		c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: addr, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		t.Setenv("NOTIFY_SOCKET", addr)
		if err := notifyReady(); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 64)
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, err := c.Read(b)
		if err != nil || string(b[:n]) != "READY=1" {
			t.Errorf("%s: %q, %v", addr, b[:n], err)
		}
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "nobody"))
	if err := notifyReady(); err == nil {
		t.Error("no process listens, and there is no error")
	}
	t.Setenv("NOTIFY_SOCKET", "")
	if err := notifyReady(); err != nil {
		t.Errorf("without a service manager: %v", err)
	}
}
