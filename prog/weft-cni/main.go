// Command weft-cni is weft's CNI plugin; called weft-ipam it gives addresses only.
package main

import (
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/weft-net/weft/cni"
	"github.com/weft-net/weft/internal/version"
)

func main() {
	skel.PluginMainFuncs(cni.Verbs(filepath.Base(os.Args[0])), cni.Versions, "weft CNI plugin "+version.String())
}
