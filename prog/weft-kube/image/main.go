// Command image writes the container image of weft-kube: nothing but the
// programs, which are static.
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

// name is the image's in the manifest and in the chart.
const name = "weft-net/weft-kube"

func main() {
	arch := flag.String("arch", "amd64", "architecture that the programs are for")
	programs := flag.String("programs", "", "folder with weft-kube and weft-cni")
	tag := flag.String("tag", "unreleased", "tag of the image")
	out := flag.String("o", "", "file to write")
	flag.Parse()
	if *programs == "" || *out == "" || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "image: want -programs DIR -o FILE, and no argument")
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
	plugin, err := image.Read(filepath.Join(programs, "weft-cni"), "/opt/weft/weft-cni")
	if err != nil {
		return err
	}
	i := &image.Image{
		Names: []string{name + ":" + tag}, Architecture: arch, Entrypoint: []string{"/usr/bin/weft-kube"},
		Files: []image.File{agent, {Path: "/usr/bin/weft", Link: "weft-kube"}, plugin},
	}
	// Whole or not there.
	f, err := os.CreateTemp(filepath.Dir(out), ".image-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // once it has its name, there is none
	if err := errors.Join(i.Write(f), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), out)
}
