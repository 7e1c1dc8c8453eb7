// Package layout has only tests: of which package may import which, and of what a
// pure package may use.
package layout

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/weft-net/weft/"

// layers, from the top down. A package may import packages of the layers below its
// own, and of its own folder. internal/lab is plumbing of the tests: it may import
// whatever it measures.
var layers = [][]string{
	{"prog", "site", "e2e"},
	{"cmd"},
	{"daemon", "internal/lab", "internal/hostile"},
	{"docker", "kube", "cni", "policy", "dns"},
	{"router", "ipam"},
	{"mesh"},
	{"internal"},
}

const direction = "imports run prog -> cmd -> daemon -> {docker, kube, cni, policy, dns} -> {router, ipam} -> mesh -> internal"

// The lab is a test bed, and the hostile peer lies: in production code only the commands
// of weft lab import them.
var labFolders = []string{"internal/lab", "internal/hostile"}

const labCommands = "cmd/lab"

// ofLab reports whether a folder is in one of labFolders.
func ofLab(folder string) bool {
	return slices.ContainsFunc(labFolders, func(f string) bool { return within(folder, f) })
}

// pure packages are step machines and formats: the simulations run the same code as
// the router, so a pure package uses no socket, clock, kernel, log or global source
// of randomness, and imports only what is pure too.
var pure = []string{
	"dns/names", "dns/zone",
	"docker/track",
	"internal/checksum", "internal/count", "internal/neighbour", "internal/owned",
	"ipam/addr", "ipam/consensus", "ipam/paxos", "ipam/ring", "ipam/space",
	"mesh/bindings", "mesh/dial", "mesh/gossip", "mesh/groups", "mesh/peer", "mesh/records", "mesh/rotation", "mesh/topology",
	"policy/model", "policy/policytest", "policy/rules",
	"router/ethernet", "router/fastpath/plan", "router/flow", "router/frag", "router/gro", "router/icmp", "router/link", "router/liveness",
	"router/mac", "router/multicast", "router/offload", "router/offload/packets", "router/replay", "router/resolve", "router/seal", "router/wire",
}

// pureFiles are the pure half of a package whose driver is in its other files.
var pureFiles = map[string][]string{
	"ipam": {
		"channel.go", "core.go", "establish.go", "init.go", "leave.go", "message.go", "regain.go", "remove.go", "request.go",
		"reason.go", "set.go", "status.go",
	},
}

// pureNames are all that pure files may use of a package that is not pure.
var pureNames = map[string]map[string][]string{
	"ipam": {"internal/store": {"Write"}}, // a value: what the driver is to write
}

// pureLibraries may be imported by pure packages, each for the reason beside it.
var pureLibraries = map[string]string{
	"golang.org/x/sys/cpu":            "router/seal reads once what the CPU can do",
	"sigs.k8s.io/yaml":                "policy/policytest parses manifests that are in it",
	"golang.org/x/crypto/":            "hashes and ciphers; none reads a clock or a socket",
	"github.com/miekg/dns":            "its messages only; dns/zone uses none of its servers and clients",
	"k8s.io/api/":                     "types of the Kubernetes API",
	"k8s.io/apimachinery/":            "types of the Kubernetes API",
	"sigs.k8s.io/network-policy-api/": "types of the Kubernetes API",
}

// impure are packages of the standard library, and of others, that a pure package
// may not import. net/netip is pure.
var impure = []string{
	"net", "net/http", "os", "os/exec", "os/signal", "log", "log/slog", "syscall", "context", "crypto/tls",
}

var clockReaders = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTicker", "NewTimer"}

// randomMakers make a source of randomness from a seed; everything else that
// packages named rand export is global.
var randomMakers = []string{"New", "NewPCG", "NewChaCha8", "NewSource", "NewZipf", "Rand", "Source", "PCG", "ChaCha8", "Zipf"}

type listed struct {
	ImportPath, Dir  string
	Imports, GoFiles []string
	IgnoredGoFiles   []string // of other architectures, and tests with tags
}

func (p *listed) folder() string { return strings.TrimPrefix(p.ImportPath, module) }

func listPackages(t *testing.T) map[string]*listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,GoFiles,IgnoredGoFiles", "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	list := make(map[string]*listed)
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		list[p.folder()] = &p
	}
}

// within reports whether folder is top or below it.
func within(folder, top string) bool { return folder == top || strings.HasPrefix(folder, top+"/") }

// layerOf returns the layer of a folder and the folder of the layer that it is in:
// the longest that fits.
func layerOf(folder string) (layer int, top string) {
	layer = -1
	for i, l := range layers {
		for _, f := range l {
			if within(folder, f) && len(f) > len(top) {
				layer, top = i, f
			}
		}
	}
	return layer, top
}

func TestImportDirection(t *testing.T) {
	for folder, p := range listPackages(t) {
		from, top := layerOf(folder)
		if from < 0 {
			t.Errorf("%s is in no layer; the layers are in this test and in ARCHITECTURE.md", folder)
			continue
		}
		for _, imported := range p.Imports {
			to, ours := strings.CutPrefix(imported, module)
			if !ours {
				continue
			}
			if l, toTop := layerOf(to); l < from || (l == from && toTop != top) {
				t.Errorf("%s imports %s: %s", folder, to, direction)
			}
		}
	}
}

func TestOnlyLabCommandsImportTheLab(t *testing.T) {
	for folder, p := range listPackages(t) {
		if ofLab(folder) || within(folder, "e2e") {
			continue
		}
		for _, name := range p.GoFiles {
			for _, imported := range importsOf(t, filepath.Join(p.Dir, name)) {
				to, ours := strings.CutPrefix(imported, module)
				if ours && ofLab(to) && !strings.HasPrefix(folder+"/"+name, labCommands) {
					t.Errorf("%s/%s imports %s: production code does not depend on the test bed", folder, name, to)
				}
			}
		}
	}
}

func TestPurePackages(t *testing.T) {
	packages := listPackages(t)
	for _, folder := range pure {
		p := packages[folder]
		if p == nil {
			t.Errorf("there is no package %s", folder)
			continue
		}
		for _, name := range slices.Concat(p.GoFiles, p.IgnoredGoFiles) {
			if !strings.HasSuffix(name, "_test.go") {
				checkPureFile(t, folder, filepath.Join(p.Dir, name))
			}
		}
	}
	for folder, names := range pureFiles {
		for _, name := range names {
			checkPureFile(t, folder, filepath.Join(packages[folder].Dir, name))
		}
	}
}

// checkPureFile checks one file. Since each package of this module that it imports
// must be in the list of pure packages itself, the check covers what it imports
// indirectly.
func checkPureFile(t *testing.T, folder, path string) {
	t.Helper()
	for _, imported := range importsOf(t, path) {
		to, ours := strings.CutPrefix(imported, module)
		switch {
		case ours && pureNames[folder][to] != nil:
			checkNames(t, path, filepath.Base(to), pureNames[folder][to])
		case ours && !slices.Contains(pure, to):
			t.Errorf("%s imports %s, which is not in the list of pure packages", path, to)
		case !ours && slices.Contains(impure, imported):
			t.Errorf("%s imports %s: %s is a pure package", path, imported, folder)
		case !ours && strings.Contains(strings.Split(imported, "/")[0], ".") && !isPureLibrary(imported):
			t.Errorf("%s imports %s, which is not in the list of pure libraries", path, imported)
		}
	}
	checkGlobals(t, path)
}

// checkNames checks that a file uses no other names of a package.
func checkNames(t *testing.T, path, name string, allowed []string) {
	t.Helper()
	set, f := parse(t, path, parser.SkipObjectResolution)
	ast.Inspect(f, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := s.X.(*ast.Ident); ok && x.Name == name && !slices.Contains(allowed, s.Sel.Name) {
				t.Errorf("%s: %s.%s: a pure file may use only %v of it", set.Position(n.Pos()), name, s.Sel.Name, allowed)
			}
		}
		return true
	})
}

func isPureLibrary(path string) bool {
	for prefix := range pureLibraries {
		if strings.HasPrefix(path, prefix) {
			return true
		}
	}
	return false
}

func parse(t *testing.T, path string, mode parser.Mode) (*token.FileSet, *ast.File) {
	t.Helper()
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, path, nil, mode)
	if err != nil {
		t.Fatal(err)
	}
	return set, f
}

func importsOf(t *testing.T, path string) (all []string) {
	t.Helper()
	_, f := parse(t, path, parser.ImportsOnly)
	for _, i := range f.Imports {
		s, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	return all
}

// checkGlobals finds uses of the clock and of global randomness.
func checkGlobals(t *testing.T, path string) {
	t.Helper()
	set, f := parse(t, path, parser.SkipObjectResolution)
	names := make(map[string]string) // of the imports that matter, by their name in this file
	for _, i := range f.Imports {
		imported, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(imported)
		if imported == "math/rand/v2" {
			name = "rand"
		}
		if i.Name != nil {
			name = i.Name.Name
		}
		switch imported {
		case "time", "math/rand", "math/rand/v2", "crypto/rand", "hash/maphash":
			names[name] = imported
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		s, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		x, ok := s.X.(*ast.Ident)
		if !ok {
			return true
		}
		switch imported := names[x.Name]; {
		case imported == "time" && slices.Contains(clockReaders, s.Sel.Name):
			t.Errorf("%s: time.%s: a pure package gets the time as an argument", set.Position(n.Pos()), s.Sel.Name)
		case imported == "hash/maphash" && s.Sel.Name == "MakeSeed":
			t.Errorf("%s: maphash.MakeSeed: a pure package is given its randomness", set.Position(n.Pos()))
		case strings.HasSuffix(imported, "rand") || strings.HasSuffix(imported, "rand/v2"):
			if imported == "crypto/rand" || !slices.Contains(randomMakers, s.Sel.Name) {
				t.Errorf("%s: %s.%s: a pure package is given its randomness", set.Position(n.Pos()), imported, s.Sel.Name)
			}
		}
		return true
	})
}

func TestPackageComment(t *testing.T) {
	for _, p := range listPackages(t) {
		var with []string
		for _, name := range p.GoFiles {
			if _, f := parse(t, filepath.Join(p.Dir, name), parser.PackageClauseOnly|parser.ParseComments); f.Doc != nil {
				with = append(with, name)
			}
		}
		if len(with) != 1 && len(p.GoFiles) > 0 {
			t.Errorf("%s has %d package comments %v, want one", p.ImportPath, len(with), with)
		}
	}
}
