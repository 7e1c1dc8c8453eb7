// Command image writes the container image of weft-kube, which contains only static
// programs.
//
//	image -arch amd64 -programs DIR -tag TAG -o FILE
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/weft-net/weft/internal/image"
)

// name is the name of the image in the manifest and in the chart.
const name = "weft-net/weft-kube"

// plugins are weft's CNI plugin and the plugins of the CNI project that are chained to it.
var plugins = []string{"weft-cni", "portmap", "bandwidth"}

func main() {
	arch := flag.String("arch", "amd64", "architecture that the programs are for")
	programs := flag.String("programs", "", "directory with weft-kube and the CNI plugins")
	tag := flag.String("tag", "unreleased", "tag of the image")
	out := flag.String("o", "", "file to write")
	flag.Parse()
	if *programs == "" || *out == "" || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "image: want -programs DIR -o FILE, and no arguments")
		os.Exit(2)
	}
	if err := write(*arch, *programs, *tag, *out); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func write(arch, programs, tag, out string) (err error) {
	agent, err := image.Read(filepath.Join(programs, "weft-kube"), "/usr/bin/weft-kube")
	if err != nil {
		return err
	}
	files := []image.File{agent, {Path: "/usr/bin/weft", Link: "weft-kube"}}
	for _, name := range plugins {
		plugin, err := image.Read(filepath.Join(programs, name), "/opt/weft/"+name)
		if err != nil {
			return err
		}
		files = append(files, plugin)
	}
	i := &image.Image{
		Names: []string{name + ":" + tag}, Architecture: arch, Entrypoint: []string{"/usr/bin/weft-kube"},
		Files: files,
	}
	// The rename makes the file appear only when it is complete.
	f, err := os.CreateTemp(filepath.Dir(out), ".image-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // does nothing after the rename
	if err := errors.Join(i.Write(f), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), out)
}
