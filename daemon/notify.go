package daemon

import (
	"fmt"
	"net"
	"os"
)

// notifyReady notifies the service manager that the router is ready, if a service manager
// started this process and asked for that: other units wait for it. See sd_notify(3).
func notifyReady() error {
	addr := os.Getenv("NOTIFY_SOCKET") // a leading @ is an abstract socket, to Go too
	if addr == "" {
		return nil
	}
	c, err := net.Dial("unixgram", addr)
	if err == nil {
		_, err = c.Write([]byte("READY=1"))
		c.Close()
	}
	if err != nil {
		return fmt.Errorf("notify the service manager at %q: %w", addr, err)
	}
	return nil
}
