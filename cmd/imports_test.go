package cmd

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
	"strings"
	"testing"
)

const module = "github.com/weft-net/weft/"

// layers, from the top down: a package may import those of its own layer's
// other packages only if they are in one folder, and those of layers below.
var layers = [][]string{
	{"prog", "site"}, {"cmd"}, {"daemon"}, {"docker", "kube", "cni", "policy", "dns"}, {"router", "ipam"}, {"mesh"}, {"internal"},
}

// pure packages are step machines and formats: no socket, clock, kernel or log
// in them, so that simulations run the same code.
var pure = []string{
	"dns/names", "dns/zone",
	"docker/track",
	"mesh/peer", "mesh/topology", "mesh/dial",
	"ipam/addr", "ipam/paxos", "ipam/ring", "ipam/space",
	"policy/model", "policy/rules", "policy/policytest",
	"router/ethernet", "router/fastpath/plan", "router/frag", "router/icmp", "router/mac", "router/replay", "router/wire",
}

var impure = []string{
	"net", "net/http", "os", "os/exec", "log", "log/slog", "syscall",
	"golang.org/x/sys/unix", "github.com/vishvananda/netlink", "github.com/google/nftables",
}

var clockReaders = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTicker", "NewTimer"}

type listed struct {
	ImportPath, Dir  string
	Imports, GoFiles []string
}

func listPackages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,GoFiles", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var list []listed
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

func layerOf(folder string) int {
	top, _, _ := strings.Cut(folder, "/")
	return slices.IndexFunc(layers, func(l []string) bool { return slices.Contains(l, top) })
}

func TestImportDirection(t *testing.T) {
	for _, p := range listPackages(t) {
		folder := strings.TrimPrefix(p.ImportPath, module)
		from := layerOf(folder)
		if from < 0 {
			t.Errorf("%s is in no layer; layers are in this test and in ARCHITECTURE.md", folder)
			continue
		}
		top, _, _ := strings.Cut(folder, "/")
		for _, imported := range p.Imports {
			to, ours := strings.CutPrefix(imported, module)
			if !ours {
				continue
			}
			toTop, _, _ := strings.Cut(to, "/")
			if l := layerOf(to); l < from || (l == from && toTop != top) {
				t.Errorf("%s imports %s: imports run prog -> cmd -> daemon -> {docker, kube, cni, policy, dns} -> {router, ipam} -> mesh -> internal", folder, to)
			}
		}
	}
}

func TestImportsOfPurePackages(t *testing.T) {
	packages := listPackages(t)
	for _, folder := range pure {
		i := slices.IndexFunc(packages, func(p listed) bool { return p.ImportPath == module+folder })
		if i < 0 {
			t.Errorf("there is no package %s", folder)
			continue
		}
		p := packages[i]
		for _, imported := range p.Imports {
			if slices.Contains(impure, imported) || strings.HasPrefix(imported, module+"internal/") {
				t.Errorf("%s imports %s: it is a pure package", folder, imported)
			}
		}
		for _, name := range p.GoFiles {
			readsClock(t, filepath.Join(p.Dir, name))
		}
	}
}

func readsClock(t *testing.T, path string) {
	t.Helper()
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		s, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		x, ok := s.X.(*ast.Ident)
		if ok && x.Name == "time" && slices.Contains(clockReaders, s.Sel.Name) {
			t.Errorf("%s: time.%s: a pure package is told the time", set.Position(n.Pos()), s.Sel.Name)
		}
		return true
	})
}

func TestPackageComment(t *testing.T) {
	for _, p := range listPackages(t) {
		var with []string
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if f.Doc != nil {
				with = append(with, name)
			}
		}
		if len(with) != 1 && len(p.GoFiles) > 0 {
			t.Errorf("%s has %d package comments %v, want one", p.ImportPath, len(with), with)
		}
	}
}
