// Command weft-cni is weft's CNI plugin. Under the name weft-ipam it only allocates addresses.
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
