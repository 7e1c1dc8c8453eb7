package layout

import (
	"go/ast"
	"go/parser"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/owned"
)

// makers are the folders whose production code makes objects in the kernel or changes them,
// with the kinds of these objects. Package owned has the table of kinds, and package keeper
// makes the objects again when other software changes them: so whoever makes an object
// declares it there.
var makers = map[string][]owned.Kind{
	"internal/netdev":        {owned.Bridge, owned.OwnRoutes, owned.ContainerPort, owned.Address, owned.Rules, owned.Sysctl, owned.Isolation, owned.DockerRule},
	"router/fastpath/kernel": {owned.RouterPort, owned.VXLAN, owned.Program, owned.Pin, owned.Map, owned.SpoofGuard},
	"internal/firewalld":     {owned.Firewall},
	"router/tap":             {owned.TAP},
	"router/wireguard":       {owned.WireGuard},
}

// otherMakers change the kernel too, each for the reason that is given.
var otherMakers = map[string]string{
	"policy":            "compares its chains and sets with the kernel itself, by the generation of the ruleset",
	"policy/enginetest": "a host for tests",
	"cmd/doctor.go":     "tries what the kernel can do, in a namespace that it removes",
}

// changes are functions of the libraries for netlink, nftables and eBPF that make objects
// or change them.
var changes = []string{
	"LinkAdd", "LinkModify", "LinkSetUp", "LinkSetDown", "LinkSetMTU", "LinkSetHardwareAddr", "LinkSetMaster", "LinkSetMasterByIndex",
	"LinkSetHairpin", "LinkSetGroup", "LinkSetAlias", "LinkAddAltName", "AddrAdd", "AddrReplace", "RouteAdd", "RouteReplace", "RuleAdd", "NeighAdd", "NeighSet",
	"QdiscAdd", "QdiscReplace", "FilterAdd", "FilterReplace", "AddTable", "AddChain", "AddRule", "AddSet", "AttachTCX", "AttachXDP",
	"ConfigureDevice", "TUNSETIFF",
}

// TestKernelObjectsAreDeclared finds code that makes objects in the kernel outside of the
// folders that are known for that.
func TestKernelObjectsAreDeclared(t *testing.T) {
	for folder, kinds := range makers {
		for _, k := range kinds {
			if _, ok := owned.InfoOf(k); !ok {
				t.Errorf("%s makes objects of kind %s, which is not in the table of package owned", folder, k)
			}
		}
	}
	made := make(map[owned.Kind]bool)
	for _, kinds := range makers {
		for _, k := range kinds {
			made[k] = true
		}
	}
	for _, i := range owned.Kinds {
		if !made[i.Kind] {
			t.Errorf("nothing makes objects of kind %s", i.Kind)
		}
	}
	for folder, p := range listPackages(t) {
		if makers[folder] != nil || ofLab(folder) || within(folder, "e2e") || within(folder, "internal/netdev/nstest") {
			continue
		}
		for _, name := range p.GoFiles {
			if otherMakers[folder] != "" || otherMakers[folder+"/"+name] != "" {
				continue
			}
			set, f := parse(t, filepath.Join(p.Dir, name), parser.SkipObjectResolution)
			ast.Inspect(f, func(n ast.Node) bool {
				s, ok := n.(*ast.SelectorExpr)
				if ok && slices.Contains(changes, s.Sel.Name) && usesKernel(f) {
					t.Errorf("%s: %s changes the kernel: objects that weft owns are made by the folders in makers, and declared to package keeper", set.Position(n.Pos()), s.Sel.Name)
				}
				return true
			})
		}
	}
}

// usesKernel reports whether a file imports a library that changes the kernel.
func usesKernel(f *ast.File) bool {
	return slices.ContainsFunc(f.Imports, func(i *ast.ImportSpec) bool {
		return slices.ContainsFunc([]string{"vishvananda/netlink", "google/nftables", "cilium/ebpf", "wgctrl", "x/sys/unix"}, func(lib string) bool {
			return strings.Contains(i.Path.Value, lib)
		})
	})
}
