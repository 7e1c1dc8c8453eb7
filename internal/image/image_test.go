package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"testing"
)

// entries reads a tar archive.
func entries(t *testing.T, b []byte) (names []string, bodies map[string][]byte) {
	t.Helper()
	bodies = make(map[string][]byte)
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names, bodies
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		bodies[h.Name] = body
	}
}

func TestArchive(t *testing.T) {
	i := &Image{Names: []string{"a/b:1"}, Architecture: "arm64", Entrypoint: []string{"/x"}, Files: []File{
		{Path: "/opt/d/x", Body: []byte("program"), Mode: 0o755}, {Path: "y", Link: "opt/d/x"},
	}}
	var one, two bytes.Buffer
	if err := errors.Join(i.Write(&one), i.Write(&two)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("writing the same image again gives other bytes")
	}
	_, parts := entries(t, one.Bytes())
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(parts["manifest.json"], &manifest); err != nil || len(manifest) != 1 || len(manifest[0].Layers) != 1 {
		t.Fatalf("manifest %s: %v", parts["manifest.json"], err)
	}
	m := manifest[0]
	var config struct {
		Architecture string
		Rootfs       struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal(parts[m.Config], &config); err != nil || config.Architecture != "arm64" {
		t.Errorf("configuration %s: %v", parts[m.Config], err)
	}
	layer := parts[m.Layers[0]]
	if want := []string{"sha256:" + sum(layer)}; !slices.Equal(config.Rootfs.DiffIDs, want) || m.Config != sum(parts[m.Config])+".json" {
		t.Errorf("sums %v and %s do not match the parts", config.Rootfs.DiffIDs, m.Config)
	}
	names, files := entries(t, layer)
	if want := []string{"opt/", "opt/d/", "opt/d/x", "y"}; !slices.Equal(names, want) || string(files["opt/d/x"]) != "program" {
		t.Errorf("layer has %v, want %v", names, want)
	}
}
