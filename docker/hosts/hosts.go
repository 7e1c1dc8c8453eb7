// Package hosts changes the /etc/hosts of containers.
//
// Docker writes the file at each start of a container and mounts it into the
// container, so it must be changed in place. Other lines stay exactly as they are;
// only lines with the container's own name are replaced.
package hosts

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxFile is the most bytes of a hosts file that are read.
const maxFile = 1 << 20

// Rewrite maps the name host to the addresses own, if there are any, in the hosts
// file at path, and adds the entries, each NAME:IP.
func Rewrite(path, host string, own []netip.Addr, entries []string) error {
	// One descriptor for all: the folder may belong to a user of the container's.
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("rewrite hosts: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("rewrite hosts: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return fmt.Errorf("rewrite hosts: %s is not a file of up to %d bytes", path, maxFile)
	}
	before, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return fmt.Errorf("rewrite hosts: %w", err)
	}
	after, err := Edit(string(before), host, own, entries)
	if err != nil {
		return fmt.Errorf("rewrite hosts: %w", err)
	}
	if after == string(before) {
		return nil
	}
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("rewrite hosts: %w", err)
	}
	if _, err := f.WriteAt([]byte(after), 0); err != nil {
		return fmt.Errorf("rewrite hosts: %w", err)
	}
	return nil
}

// Edit returns text as Rewrite leaves it. Doing it twice changes nothing.
func Edit(text, host string, own []netip.Addr, entries []string) (string, error) {
	var added []string
	if !isName(host) {
		own = nil
	} else {
		for _, a := range own {
			added = append(added, a.String()+"\t"+host)
		}
	}
	for _, e := range entries {
		name, a, err := ParseEntry(e)
		if err != nil {
			return "", err
		}
		added = append(added, a.String()+"\t"+name)
	}
	var kept []string
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if slices.Contains(added, line) || len(own) > 0 && says(line, host) {
			continue
		}
		kept = append(kept, line)
	}
	all := append(kept, added...)
	if len(all) == 0 {
		return "", nil
	}
	return strings.Join(all, "\n") + "\n", nil
}

// says reports whether a line maps host to an address other than loopback.
func says(line, host string) bool {
	line, _, _ = strings.Cut(line, "#")
	words := strings.Fields(line)
	if len(words) < 2 {
		return false
	}
	a, err := netip.ParseAddr(words[0])
	return err == nil && !a.IsLoopback() && slices.Contains(words[1:], host)
}

// ParseEntry reads NAME:IP.
func ParseEntry(s string) (string, netip.Addr, error) {
	name, ip, ok := strings.Cut(s, ":")
	a, err := netip.ParseAddr(strings.Trim(ip, "[]"))
	if !ok || err != nil || a.Zone() != "" || !isName(name) {
		return "", netip.Addr{}, fmt.Errorf("host %q: want NAME:IP", s)
	}
	return name, a, nil
}

func isName(s string) bool {
	return s != "" && len(s) <= 253 && !strings.ContainsFunc(s, notInName)
}

func notInName(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '.' && r != '_'
}
