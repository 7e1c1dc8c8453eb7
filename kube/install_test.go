package kube

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, path, body string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(body), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestInstallAndUninstall(t *testing.T) {
	dir := t.TempDir()
	p := &Plugin{Program: filepath.Join(dir, "program"), BinDir: t.TempDir(), ConfDir: t.TempDir(), Hairpin: true}
	if _, err := p.Install(); err == nil {
		t.Error("Install succeeded without a plugin in the image")
	}
	write(t, p.Program, "v1")
	for _, c := range chained {
		if _, err := os.Stat(filepath.Join(p.ConfDir, conflistName)); err == nil {
			t.Errorf("a configuration without %s", c.name)
		}
		if _, err := p.Install(); err == nil || !strings.Contains(err.Error(), c.name) {
			t.Errorf("install without %s: %v", c.name, err)
		}
		write(t, filepath.Join(dir, c.name), "of "+c.name)
	}
	write(t, filepath.Join(p.BinDir, "portmap"), "")
	for _, want := range []bool{true, false} {
		if wrote, err := p.Install(); err != nil || wrote != want {
			t.Errorf("install: wrote %v, %v; want %v", wrote, err, want)
		}
	}
	conf, err := os.ReadFile(filepath.Join(p.ConfDir, conflistName))
	if err != nil || !strings.Contains(string(conf), `"weft-portmap"`) || !strings.Contains(string(conf), `"weft-bandwidth"`) {
		t.Errorf("configuration %s, %v; want portmap and bandwidth after weft's own", conf, err)
	}
	if b, err := os.ReadFile(filepath.Join(p.BinDir, "weft-portmap")); err != nil || string(b) != "of portmap" {
		t.Errorf("portmap is %q, %v", b, err)
	}
	write(t, p.Program, "v2")
	if wrote, err := p.Install(); err != nil || !wrote {
		t.Errorf("install of another version: wrote %v, %v", wrote, err)
	}
	if b, err := os.ReadFile(filepath.Join(p.BinDir, pluginName)); err != nil || string(b) != "v2" {
		t.Errorf("plugin is %q, %v", b, err)
	}
	write(t, unfinished(filepath.Join(p.BinDir, pluginName)), "of one that was killed")
	for range 2 {
		if err := p.Uninstall(); err != nil {
			t.Error(err)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, "..", "*", "*weft*"))
	if err != nil || len(left) > 0 {
		t.Errorf("remaining files: %v, %v", left, err)
	}
	if _, err := os.Stat(filepath.Join(p.BinDir, "portmap")); err != nil {
		t.Errorf("the plugin of another network is missing: %v", err)
	}
}
