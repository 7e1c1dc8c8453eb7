package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	conflistName = "10-weft.conflist"
	pluginName   = "weft-cni"
	ipamName     = "weft-ipam" // the same program, which gives addresses only
)

// Plugin is the CNI plugin and where it goes. Paths are as the agent sees them.
type Plugin struct {
	Program string // weft-cni, in the image
	BinDir  string // the runtime's folder of plugins
	ConfDir string // the runtime's folder of networks
	Hairpin bool
}

// Install puts the plugin and, as that is what the kubelet takes for a network,
// at last the network's configuration in place. Each file is whole or not there,
// and one that is right already is not written. It tells whether it wrote any.
func (p *Plugin) Install() (wrote bool, err error) {
	program, err := os.ReadFile(p.Program)
	if err != nil {
		return false, fmt.Errorf("install the CNI plugin: %w", err)
	}
	conf, err := p.conflist()
	if err != nil {
		return false, err
	}
	for _, f := range []struct {
		path string
		body []byte
		mode fs.FileMode
	}{
		{filepath.Join(p.BinDir, pluginName), program, 0o755},
		{filepath.Join(p.BinDir, ipamName), program, 0o755},
		{filepath.Join(p.ConfDir, conflistName), conf, 0o644},
	} {
		w, err := replace(f.path, f.body, f.mode)
		if err != nil {
			return wrote, fmt.Errorf("install the CNI plugin: %w", err)
		}
		wrote = wrote || w
	}
	return wrote, nil
}

// Uninstall takes away what Install put there, the configuration first.
func (p *Plugin) Uninstall() error {
	var errs []error
	for _, path := range []string{
		filepath.Join(p.ConfDir, conflistName), filepath.Join(p.BinDir, ipamName), filepath.Join(p.BinDir, pluginName),
	} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove the CNI plugin: %w", err))
		}
	}
	return errors.Join(errs...)
}

// chained are the plugins that come after weft's, if the Node has them: ports of
// the Node for a pod, and limits of its bandwidth.
var chained = []struct{ name, capability string }{{"portmap", "portMappings"}, {"bandwidth", "bandwidth"}}

// conflist is the network's configuration, of version 1.0.0 of the specification.
func (p *Plugin) conflist() ([]byte, error) {
	plugins := []map[string]any{{"type": pluginName, "hairpinMode": p.Hairpin}}
	for _, c := range chained {
		info, err := os.Stat(filepath.Join(p.BinDir, c.name))
		if err != nil || info.Mode()&0o111 == 0 {
			continue
		}
		plugin := map[string]any{"type": c.name, "capabilities": map[string]bool{c.capability: true}}
		if c.name == "portmap" {
			plugin["snat"] = true
		}
		plugins = append(plugins, plugin)
	}
	b, err := json.MarshalIndent(map[string]any{"cniVersion": "1.0.0", "name": "weft", "plugins": plugins}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", conflistName, err)
	}
	return append(b, '\n'), nil
}

// replace makes a file have a body, in one step, and tells whether it had not.
func replace(path string, body []byte, mode fs.FileMode) (wrote bool, err error) {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, body) {
		return false, nil
	}
	// A name with a dot in front is no network's and no plugin's.
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return false, err
	}
	defer os.Remove(f.Name()) // once it has its name, there is none
	_, err = f.Write(body)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return false, err
	}
	return true, os.Rename(f.Name(), path)
}
