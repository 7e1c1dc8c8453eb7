package testbed

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
)

// Topology says which hosts of a lab reach each other in the underlay.
type Topology string

// The topologies.
const (
	Full Topology = "full" // all reach all
	Line Topology = "line" // only neighbours reach each other
	Star Topology = "star" // all reach h1 only
)

// Config configures a lab.
type Config struct {
	Name        string   `json:"name"`
	Hosts       int      `json:"hosts"`
	Topology    Topology `json:"topology"`
	UnderlayMTU int      `json:"underlayMTU"` // bytes of IP packet; 0: 1500
	Password    string   `json:"password,omitempty"`
	Flags       []string `json:"flags,omitempty"` // of weft launch, on every host
}

// Check returns an error if c is invalid.
func (c Config) Check() error {
	if err := CheckName(c.Name); err != nil {
		return err
	}
	if c.Hosts < 1 || c.Hosts > MaxHosts {
		return fmt.Errorf("%d hosts: want 1 to %d", c.Hosts, MaxHosts)
	}
	switch c.Topology {
	case Full, Line, Star:
	default:
		return fmt.Errorf("topology %q: want full, line or star", c.Topology)
	}
	if c.UnderlayMTU != 0 && (c.UnderlayMTU < 1280 || c.UnderlayMTU > 65535) {
		return fmt.Errorf("underlay MTU %d: want 1280, the least for IPv6, to 65535", c.UnderlayMTU)
	}
	return nil
}

// Lab is an existing lab. Its methods may be called concurrently for different hosts and
// containers.
type Lab struct {
	Config
	// Exe is the weft binary to run as router; empty for that of this process.
	Exe string
	// Raised is set if Create raised this machine's limits of neighbours.
	Raised bool
}

// neighboursOf returns how many neighbours the kernel must be able to hold for a lab: each host
// has each other one, by IPv4 and IPv6, and each container that it talks to.
func neighboursOf(hosts int) int { return max(1024, 4*hosts*hosts) }

// Create makes the hosts and the underlay of a lab. Launch starts the routers. On error
// nothing is left.
func Create(c Config) (l *Lab, err error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	if old, err := namespaces(c.Name); err != nil {
		return nil, err
	} else if len(old) > 0 || exists(labDir(c.Name)) {
		return nil, fmt.Errorf("lab %s exists already; take it down with: weft lab down --name %s", c.Name, c.Name)
	}
	// The directory is the lock: if two processes make the same lab, one fails here.
	if err := makeLabDir(c.Name); err != nil {
		return nil, fmt.Errorf("make lab %s: %w", c.Name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, Down(c.Name))
		}
	}()
	l = &Lab{Config: c}
	if l.Raised, err = netdev.RaiseNeighbours(netdev.ProcSys, neighboursOf(c.Hosts)); err != nil {
		return nil, fmt.Errorf("make lab %s: %w", c.Name, err)
	}
	b, err := json.MarshalIndent(c, "", "    ")
	if err != nil {
		return nil, fmt.Errorf("make lab %s: %w", c.Name, err)
	}
	if err := os.WriteFile(l.configFile(), append(b, '\n'), 0o600); err != nil {
		return nil, fmt.Errorf("make lab %s: %w", c.Name, err)
	}
	for n := 1; n <= c.Hosts; n++ {
		if err := os.Mkdir(l.HostDir(n), 0o700); err != nil {
			return nil, fmt.Errorf("make lab %s: %w", c.Name, err)
		}
	}
	if err := l.makeUnderlay(); err != nil {
		return nil, fmt.Errorf("make lab %s: %w", c.Name, err)
	}
	if err := l.applyTopology(); err != nil {
		return nil, fmt.Errorf("make lab %s: %w", c.Name, err)
	}
	return l, nil
}

// makeLabDir makes the directory of a lab, which must not exist. Its parent may disappear
// at any time, together with the last of the other labs.
func makeLabDir(name string) error {
	for {
		if err := os.MkdirAll(root, 0o700); err != nil {
			return err
		}
		if err := os.Mkdir(labDir(name), 0o700); !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
}

// Open finds a lab that Create made, in this process or another.
func Open(name string) (*Lab, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	l := &Lab{Config: Config{Name: name}}
	b, err := os.ReadFile(l.configFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("there is no lab %s; make it with: weft lab up --name %s", name, name)
	}
	if err != nil {
		return nil, fmt.Errorf("open lab %s: %w", name, err)
	}
	if err := json.Unmarshal(b, &l.Config); err != nil {
		return nil, fmt.Errorf("open lab %s: read %s: %w", name, l.configFile(), err)
	}
	if l.Name != name {
		return nil, fmt.Errorf("open lab %s: %s belongs to lab %q", name, l.configFile(), l.Name)
	}
	if err := l.Check(); err != nil {
		return nil, fmt.Errorf("open lab %s: read %s: %w", name, l.configFile(), err)
	}
	return l, nil
}

// Down kills every process in the lab's namespaces and removes the namespaces and the
// lab's files. It also removes an incomplete lab. A missing lab is no error.
func Down(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	found, err := namespaces(name)
	if err != nil {
		return err
	}
	var errs []error
	for _, ns := range found {
		errs = append(errs, killAll(netdev.NSByName(ns)))
	}
	for _, ns := range found {
		errs = append(errs, netdev.DeleteNS(ns))
	}
	errs = append(errs, unmountAll(labDir(name)))
	if err := os.RemoveAll(labDir(name)); err != nil {
		errs = append(errs, fmt.Errorf("remove the files of lab %s: %w", name, err))
	}
	// Both directories may be in use by another lab or by the machine's own router.
	os.Remove(root)
	os.Remove(filepath.Dir(root))
	return errors.Join(errs...)
}

// unmountAll unmounts the bpf file systems that the routers of a lab have mounted in their
// directories.
func unmountAll(lab string) error {
	all, err := filepath.Glob(filepath.Join(lab, "h*", "bpf"))
	errs := []error{err}
	for _, path := range all {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}

// Summary describes a lab in a list of labs.
type Summary struct {
	Name       string
	Hosts      []string // that exist in the kernel
	Containers []string // HOST/NAME
	Complete   bool     // if false, the lab can only be taken down
}

var anyNamespace = regexp.MustCompile(`^weft-(.+?)-(underlay|h[1-9][0-9]*)(?:-(.*))?$`)

// List returns the labs of this machine, complete or not, sorted by name.
func List() ([]Summary, error) {
	all, err := netdev.ListNS()
	if err != nil {
		return nil, err
	}
	byName := make(map[string]*Summary)
	get := func(name string) *Summary {
		if byName[name] == nil {
			byName[name] = &Summary{Name: name}
		}
		return byName[name]
	}
	for _, ns := range all {
		m := anyNamespace.FindStringSubmatch(ns)
		if m == nil || CheckName(m[1]) != nil {
			continue
		}
		s := get(m[1])
		switch {
		case m[2] == underlayNS:
		case m[3] == "":
			s.Hosts = append(s.Hosts, m[2])
		default:
			s.Containers = append(s.Containers, m[2]+"/"+m[3])
		}
	}
	dirs, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list labs: %w", err)
	}
	for _, f := range dirs {
		if CheckName(f.Name()) == nil {
			get(f.Name())
		}
	}
	var list []Summary
	for _, s := range byName {
		l, err := Open(s.Name)
		s.Complete = err == nil && len(s.Hosts) == l.Hosts
		slices.SortFunc(s.Hosts, byLengthThenName)
		list = append(list, *s)
	}
	slices.SortFunc(list, func(a, b Summary) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// byLengthThenName sorts h10 after h9.
func byLengthThenName(a, b string) int {
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	return strings.Compare(a, b)
}

// HostDir returns the directory with the socket, log and state of host n.
func (l *Lab) HostDir(n int) string { return filepath.Join(labDir(l.Name), hostName(n)) }

// Socket returns the path of the control socket of host n's router.
func (l *Lab) Socket(n int) string { return filepath.Join(l.HostDir(n), "weft.sock") }

// StateDir returns the directory of the state of host n's router.
func (l *Lab) StateDir(n int) string { return filepath.Join(l.HostDir(n), "state") }

// LogFile returns the path of the log of host n's router.
func (l *Lab) LogFile(n int) string { return filepath.Join(l.HostDir(n), "weft.log") }

func (l *Lab) configFile() string { return filepath.Join(labDir(l.Name), "lab.json") }

func (l *Lab) pidFile(n int) string { return filepath.Join(l.HostDir(n), "pid") }

// Netns returns the path of a place's network namespace.
func (l *Lab) Netns(p Place) string { return netdev.NSByName(p.namespace(l.Name)) }

// CheckPlace returns an error if a place does not exist.
func (l *Lab) CheckPlace(p Place) error {
	if p.Host > l.Hosts {
		return fmt.Errorf("lab %s has no host h%d, only h1 to h%d", l.Name, p.Host, l.Hosts)
	}
	if !exists(l.Netns(p)) {
		if p.Container == "" {
			return fmt.Errorf("lab %s has lost its host %s; take it down with: weft lab down --name %s", l.Name, p, l.Name)
		}
		return fmt.Errorf("lab %s has no container %s", l.Name, p)
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
