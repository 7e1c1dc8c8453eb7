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
	ipamName     = "weft-ipam" // the same program, used for addresses only
)

// Plugin is the CNI plugin and the directories where it is installed. Paths are as the agent sees
// them.
type Plugin struct {
	Program string // path of weft-cni in the image, next to the chained plugins
	BinDir  string // the runtime's directory of plugins
	ConfDir string // the runtime's directory of network configurations
	Hairpin bool
}

// Install installs the plugin, and then the network configuration, because the kubelet takes the
// network for ready once that exists. Files appear as a whole, and files that are up to date are
// not written. It reports whether it wrote any.
func (p *Plugin) Install() (wrote bool, err error) {
	put := func(path string, mode fs.FileMode, body []byte, err error) error {
		w := false
		if err == nil {
			w, err = replace(path, body, mode)
		}
		if err != nil {
			return fmt.Errorf("install the CNI plugin: %w", err)
		}
		wrote = wrote || w
		return nil
	}
	for _, f := range p.programs() {
		body, err := os.ReadFile(f.from)
		if err := put(filepath.Join(p.BinDir, f.name), 0o755, body, err); err != nil {
			return wrote, err
		}
	}
	conf, err := p.conflist()
	return wrote, put(filepath.Join(p.ConfDir, conflistName), 0o644, conf, err)
}

// installed is a program of the image and its name on the Node.
type installed struct{ from, name string }

func (p *Plugin) programs() []installed {
	list := []installed{{p.Program, pluginName}, {p.Program, ipamName}}
	for _, c := range chained {
		list = append(list, installed{filepath.Join(filepath.Dir(p.Program), c.name), chainedPrefix + c.name})
	}
	return list
}

// Uninstall removes the files that Install wrote, the configuration first.
func (p *Plugin) Uninstall() error {
	var errs []error
	paths := []string{filepath.Join(p.ConfDir, conflistName)}
	for _, f := range p.programs() {
		paths = append(paths, filepath.Join(p.BinDir, f.name))
	}
	for _, target := range paths {
		for _, path := range []string{target, unfinished(target)} {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("remove the CNI plugin: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}

// chainedPrefix is the prefix of the names of chained plugins on the Node. Plugins without it
// belong to the Node, in any version, or do not exist.
const chainedPrefix = "weft-"

// chained are plugins of the CNI project that run after weft's: host ports of a pod, and limits of
// its bandwidth. They do nothing for pods that use neither.
var chained = []struct{ name, capability string }{{"portmap", "portMappings"}, {"bandwidth", "bandwidth"}}

// A runtime uses the highest of confVersions that it supports, and from 1.1.0 on it also calls
// STATUS and GC. Runtimes from before 1.1.0 ignore confVersions and use confVersion.
const confVersion = "1.0.0"

var confVersions = []string{confVersion, "1.1.0"}

// conflist returns the network configuration.
func (p *Plugin) conflist() ([]byte, error) {
	plugins := []map[string]any{{
		"type": pluginName, "hairpinMode": p.Hairpin,
		// With the annotations, pods can be allowed to spoof; see cni.AllowSpoofAnnotation.
		"capabilities": map[string]bool{"bandwidth": true, "io.kubernetes.cri.pod-annotations": true},
	}}
	for _, c := range chained {
		plugin := map[string]any{"type": chainedPrefix + c.name, "capabilities": map[string]bool{c.capability: true}}
		if c.name == "portmap" {
			plugin["snat"] = true
		}
		plugins = append(plugins, plugin)
	}
	b, err := json.MarshalIndent(map[string]any{
		"cniVersion": confVersion, "cniVersions": confVersions, "name": "weft", "plugins": plugins,
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", conflistName, err)
	}
	return append(b, '\n'), nil
}

// replace writes a file in one step, unless it already has the content. It reports whether it
// wrote.
func replace(path string, body []byte, mode fs.FileMode) (wrote bool, err error) {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, body) {
		return false, nil
	}
	f, err := os.OpenFile(unfinished(path), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return false, err
	}
	defer os.Remove(f.Name()) // does nothing after the rename
	_, err = f.Write(body)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return false, err
	}
	return true, os.Rename(f.Name(), path)
}

// unfinished returns the name of a file while it is being written. The file stays if the process
// is killed meanwhile. Runtimes take no network and no plugin from a file of such a name.
func unfinished(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
}
