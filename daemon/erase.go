package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/fastpath/plan"
	"github.com/weft-net/weft/router/wireguard"
)

// Erase removes everything that a router with this configuration has left on the
// host: its interfaces, its rules, its state and its sockets. The router must not run.
func Erase(c *Config) error {
	errs := []error{
		kernel.Remove(kernel.Options{PinDir: c.pinDir(), Port: netdev.PortName, PortPeer: netdev.PortPeerName, VXLAN: netdev.VXLANName}),
		wireguard.Remove(wireguard.Config{Name: netdev.TunnelName, Inside: plan.TunnelPrefix}),
		netdev.DeleteAll(c.Bridge, netdev.TAPName),
		netdev.RemoveFromDockerUser(context.Background(), c.Bridge),
	}
	files, err := leftFiles(c)
	if err != nil {
		return fmt.Errorf("remove the state: %w", err)
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove the state: %w", err))
		}
	}
	// Folders that hold files of other programs stay.
	for _, folder := range []string{c.StateDir, filepath.Dir(c.Socket)} {
		if entries, err := os.ReadDir(folder); err == nil && len(entries) == 0 {
			errs = append(errs, os.Remove(folder))
		}
	}
	return errors.Join(errs...)
}

// leftFiles returns the files that a router may have left, each folder after its
// files.
func leftFiles(c *Config) (files []string, err error) {
	patterns := []string{filepath.Join(api.GoneDir(c.StateDir), "*")}
	for _, f := range []string{storeFile, ipamFile, ipam6File} {
		patterns = append(patterns, c.path(f)+"*") // damaged ones that were set aside too
	}
	for _, p := range patterns {
		found, err := filepath.Glob(p)
		if err != nil {
			return nil, err
		}
		files = append(files, found...)
	}
	for _, s := range c.Docker.sockets() {
		// A router that was killed leaves them, and Docker would wait for an answer.
		path, unix := strings.CutPrefix(s, "unix://")
		if info, err := os.Lstat(path); unix && err == nil && info.Mode().Type() == os.ModeSocket {
			files = append(files, path)
		}
	}
	return append(files, api.GoneDir(c.StateDir), c.path(identityFile), c.path(LogFile), c.path(LaunchFile), c.Socket), nil
}

// Exists reports whether a router has left state on the host.
func Exists(c *Config) bool {
	return slices.ContainsFunc([]string{storeFile, identityFile}, func(f string) bool {
		_, err := os.Lstat(c.path(f))
		return err == nil
	})
}
