// Command weft joins Linux hosts into one virtual Ethernet switch for their
// containers.
package main

import (
	"os"

	"github.com/weft-net/weft/cmd"
)

func main() { os.Exit(cmd.Main(os.Args[1:], os.Stdout, os.Stderr)) }
