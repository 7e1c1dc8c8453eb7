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
	"github.com/weft-net/weft/internal/hostfile"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/fastpath/plan"
	"github.com/weft-net/weft/router/wireguard"
)

// Erase removes everything that a router with this configuration has left on the
// host: its interfaces, its rules, its state and its sockets. The router must not run.
func Erase(c *Config) error {
	errs := []error{
		kernel.RemoveGuard(c.pinDir()),
		kernel.Remove(kernel.Options{PinDir: c.pinDir(), Port: netdev.PortName, PortPeer: netdev.PortPeerName, VXLAN: netdev.VXLANName}),
		wireguard.Remove(wireguard.Config{Name: netdev.TunnelName, Inside: plan.TunnelPrefix}),
		netdev.RemoveOwnRoutes(),
		netdev.DeleteAll(c.Bridge, netdev.TAPName),
		netdev.RemoveFromDockerUser(context.Background(), c.Bridge),
		removeFromFirewalld(c.Bridge),
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
	// A router that was killed leaves its sockets, and Docker would wait for an answer.
	for _, s := range append(c.Docker.sockets(), "unix://"+c.Socket) {
		if path, unix := strings.CutPrefix(s, "unix://"); unix {
			errs = append(errs, hostfile.RemoveDead(path))
		}
	}
	// Folders of others, or with files of others, stay.
	for folder, mode := range map[string]fs.FileMode{c.StateDir: hostfile.PrivateMode, filepath.Dir(c.Socket): hostfile.SocketsMode} {
		if entries, err := os.ReadDir(folder); err == nil && len(entries) == 0 && madeByWeft(folder, mode) {
			errs = append(errs, os.Remove(folder))
		}
	}
	return errors.Join(errs...)
}

// madeByWeft reports whether weft or a kubelet made the folder for weft: it has the mode that weft
// gives to such a folder, or it is named weft.
func madeByWeft(folder string, mode fs.FileMode) bool {
	info, err := os.Lstat(folder)
	return err == nil && info.IsDir() && (info.Mode().Perm() == mode || filepath.Base(folder) == "weft")
}

// leftFiles returns the files that a router may have left, each folder after its
// files.
func leftFiles(c *Config) (files []string, err error) {
	kinds := map[string][]string{api.GoneDir(c.StateDir): {"*"}}
	for _, f := range []string{storeFile, ipamFile, ipam6File} {
		kinds[c.StateDir] = append(kinds[c.StateDir], f, f+".*-[0-9]*") // those that were set aside too, see store.SetAside
	}
	for folder, patterns := range kinds {
		entries, err := os.ReadDir(folder)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if slices.ContainsFunc(patterns, func(p string) bool { ok, _ := filepath.Match(p, e.Name()); return ok }) {
				files = append(files, filepath.Join(folder, e.Name()))
			}
		}
	}
	return append(files, api.GoneDir(c.StateDir), c.path(identityFile), c.path(LogFile), c.path(LaunchFile)), nil
}

// Exists reports whether a router has left state on the host.
func Exists(c *Config) bool {
	return slices.ContainsFunc([]string{storeFile, identityFile}, func(f string) bool {
		_, err := os.Lstat(c.path(f))
		return err == nil
	})
}
