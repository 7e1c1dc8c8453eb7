// Package image writes container images of one layer without a daemon or a registry.
//
// The archive has the format of `docker save`, which docker load, podman load, ctr
// images import and skopeo accept. Equal files give equal bytes: times are zero and
// owners are root.
//
//	manifest.json              names the other two
//	<sha256>.json              configuration: entry point, architecture
//	<sha256>.tar               the layer
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// File is one entry of the layer. Parent directories are added.
type File struct {
	Path string // in the image
	Body []byte
	Mode fs.FileMode // permissions
	Link string      // target, if the entry is a symbolic link
}

// Image is an image to write.
type Image struct {
	Names        []string // with tags
	Architecture string   // a GOARCH
	Entrypoint   []string
	Cmd          []string
	Files        []File
}

// Read reads a file from disk into an executable File at path to.
func Read(from, to string) (File, error) {
	b, err := os.ReadFile(from)
	if err != nil {
		return File{}, fmt.Errorf("add a file to an image: %w", err)
	}
	return File{Path: to, Body: b, Mode: 0o755}, nil
}

// Write writes the archive.
func (i *Image) Write(w io.Writer) error {
	layer, err := i.layer()
	if err != nil {
		return fmt.Errorf("write the layer of image %s: %w", i.Names, err)
	}
	layerSum := sum(layer)
	config, err := json.Marshal(map[string]any{
		"architecture": i.Architecture, "os": "linux", "created": "1970-01-01T00:00:00Z",
		"config": map[string]any{"Entrypoint": i.Entrypoint, "Cmd": i.Cmd, "Env": []string{"PATH=/usr/bin:/bin:/"}, "WorkingDir": "/"},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + layerSum}},
	})
	if err != nil {
		return fmt.Errorf("write the configuration of image %s: %w", i.Names, err)
	}
	configSum := sum(config)
	manifest, err := json.Marshal([]any{map[string]any{
		"Config": configSum + ".json", "RepoTags": i.Names, "Layers": []string{layerSum + ".tar"},
	}})
	if err != nil {
		return fmt.Errorf("write the manifest of image %s: %w", i.Names, err)
	}
	t := tar.NewWriter(w)
	for _, f := range []File{
		{Path: "manifest.json", Body: manifest}, {Path: configSum + ".json", Body: config}, {Path: layerSum + ".tar", Body: layer},
	} {
		if err := add(t, File{Path: f.Path, Body: f.Body, Mode: 0o644}); err != nil {
			return fmt.Errorf("write image %s: %w", i.Names, err)
		}
	}
	return t.Close()
}

func sum(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

// layer returns a tar archive of the files and their directories.
func (i *Image) layer() ([]byte, error) {
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	made := map[string]bool{".": true}
	for _, f := range i.Files {
		f.Path = strings.TrimPrefix(path.Clean("/"+f.Path), "/")
		if err := addDirs(t, path.Dir(f.Path), made); err != nil {
			return nil, err
		}
		if err := add(t, f); err != nil {
			return nil, err
		}
	}
	err := t.Close()
	return b.Bytes(), err
}

func addDirs(t *tar.Writer, dir string, made map[string]bool) error {
	if made[dir] {
		return nil
	}
	made[dir] = true
	if err := addDirs(t, path.Dir(dir), made); err != nil {
		return err
	}
	return t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755})
}

func add(t *tar.Writer, f File) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: f.Path, Mode: int64(f.Mode.Perm()), Size: int64(len(f.Body))}
	if f.Link != "" {
		h.Typeflag, h.Linkname, h.Mode, h.Size = tar.TypeSymlink, f.Link, 0o777, 0
	}
	if err := t.WriteHeader(h); err != nil || f.Link != "" {
		return err
	}
	_, err := t.Write(f.Body)
	return err
}
