package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/weft-net/weft/internal/image"
)

// Images of every node.
const (
	PauseImage = "localhost/pause:1"
	// PodImage has the program of package pod, and busybox as sh, ip and ping.
	PodImage = "localhost/pod:1"
)

// PodProgram returns the path of the program that pods run, for use outside of pods.
func (c *Cluster) PodProgram() string { return filepath.Join(c.Network.Dir(), "pod") }

// makeImages builds the images of pods, and returns their archives.
func (c *Cluster) makeImages(ctx context.Context) ([]string, error) {
	program := c.PodProgram()
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", program, "github.com/weft-net/weft/internal/lab/cluster/pod")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the program of pods: %w: %s", err, out)
	}
	pod, err := image.Read(program, "/usr/bin/pod")
	if err != nil {
		return nil, err
	}
	busybox, err := image.Read("/bin/busybox", "/bin/busybox")
	if err != nil {
		return nil, err
	}
	var archives []string
	for _, i := range []*image.Image{
		{Names: []string{PauseImage}, Entrypoint: []string{"/usr/bin/pod", "pause"}, Files: []image.File{pod}},
		{Names: []string{PodImage}, Entrypoint: []string{"/usr/bin/pod"}, Cmd: []string{"serve"}, Files: []image.File{
			pod, busybox, {Path: "/bin/sh", Link: "busybox"}, {Path: "/bin/ip", Link: "busybox"}, {Path: "/bin/ping", Link: "busybox"},
		}},
	} {
		archive, err := c.archive(i)
		if err != nil {
			return nil, err
		}
		archives = append(archives, archive)
	}
	return archives, nil
}

// AddImage adds an image, for the architecture of this machine, to all present and future
// nodes.
func (c *Cluster) AddImage(ctx context.Context, i *image.Image) error {
	archive, err := c.archive(i)
	if err != nil {
		return err
	}
	c.Images = append(c.Images, archive)
	for _, n := range c.Nodes {
		if err := n.Import(ctx, archive); err != nil {
			return err
		}
	}
	return nil
}

// archive writes an image to a file that nodes can read.
func (c *Cluster) archive(i *image.Image) (string, error) {
	i.Architecture = runtime.GOARCH
	path := filepath.Join(c.Network.Dir(), filepath.Base(i.Names[0])+".tar")
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	return path, errors.Join(i.Write(f), f.Close())
}
