package kernel

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

//go:generate go tool bpf2go -target bpfel -output-stem weft -cflags "-O2 -mcpu=v3 -Wall -Wextra -Werror -fno-strict-aliasing -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu" bpf bpf/weft.c

// meaning is part of the version of the layout. It changes if the contents of the maps
// change their meaning but not their form.
const meaning = 1

// versionLen is the length of the version of a layout in bytes. Its name has two
// hexadecimal digits for each.
const versionLen = 8

// layoutVersion returns the name of the form of the maps. Maps with another one cannot
// be taken over.
func layoutVersion(spec *ebpf.CollectionSpec) string {
	h := sha256.New()
	fmt.Fprintln(h, meaning)
	for _, name := range slices.Sorted(maps.Keys(spec.Maps)) {
		m := spec.Maps[name]
		fmt.Fprintln(h, name, m.Type, m.KeySize, m.ValueSize, m.MaxEntries, m.Flags)
		for _, t := range []btf.Type{m.Key, m.Value} {
			describe(h, t)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:versionLen])
}

// describe writes the members of a struct.
func describe(h interface{ Write([]byte) (int, error) }, t btf.Type) {
	s, ok := t.(*btf.Struct)
	if !ok {
		return
	}
	for _, m := range s.Members {
		size, _ := btf.Sizeof(m.Type)
		fmt.Fprintln(h, m.Name, m.Offset, size)
	}
}

// collection are the loaded programs and maps.
type collection struct {
	bpfMaps
	// Programs; those of express are nil if express says why.
	fromPort, fromTap, fromVxlan, fromContainer, fromUnderlay *ebpf.Program

	express error
}

// load loads programs and maps. Maps that are pinned in dir are taken over, the
// others are pinned there.
func load(spec *ebpf.CollectionSpec, dir string) (*collection, error) {
	// Before Linux 5.11 maps count as locked memory. Where it cannot be raised,
	// making them says so.
	_ = rlimit.RemoveMemlock()
	spec = spec.Copy()
	express := tryExpress(spec)
	if express != nil {
		delete(spec.Programs, bpfProgFromContainer)
		delete(spec.Programs, bpfProgFromUnderlay)
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinByName
	}
	c := &collection{express: express}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: dir}})
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	if err := coll.Assign(&c.bpfMaps); err != nil {
		return nil, err
	}
	for name, p := range map[string]**ebpf.Program{
		bpfProgFromPort: &c.fromPort, bpfProgFromTap: &c.fromTap, bpfProgFromVxlan: &c.fromVxlan,
		bpfProgFromContainer: &c.fromContainer, bpfProgFromUnderlay: &c.fromUnderlay,
	} {
		*p = coll.DetachProgram(name)
	}
	return c, nil
}

func (c *collection) close() {
	for _, p := range []*ebpf.Program{c.fromPort, c.fromTap, c.fromVxlan, c.fromContainer, c.fromUnderlay} {
		p.Close()
	}
	c.bpfMaps.Close()
}

// mountBPF mounts a file system of type bpf on dir, unless dir is on one.
func mountBPF(dir string) error {
	is, err := isBPF(dir)
	if err != nil || is {
		return err
	}
	if err := unix.Mount(mountSource, dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpf on %s: %w", dir, err)
	}
	return nil
}

func isBPF(dir string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false, fmt.Errorf("look at file system of %s: %w", dir, err)
	}
	return st.Type == unix.BPF_FS_MAGIC, nil
}

// removeOthers unlinks what layouts other than version have pinned in dir.
func removeOthers(dir, version string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		// The folder may be one that others pin in too.
		if b, err := hex.DecodeString(e.Name()); e.IsDir() && err == nil && len(b) == versionLen && e.Name() != version {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}
