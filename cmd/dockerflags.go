package cmd

import (
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"github.com/weft-net/weft/cmd/daemon"
	"github.com/weft-net/weft/docker"
	"github.com/weft-net/weft/docker/plugin"
)

// dockerFlags are the flags of weft launch that are about Docker.
type dockerFlags struct {
	api          string
	plugin       bool
	pluginSocket string
}

// defaultPluginSocket is in the folder that Docker looks for plugins in; the
// file's name is that of the driver.
const defaultPluginSocket = "/run/docker/plugins/" + plugin.Name + ".sock"

func (f *dockerFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.api, "docker-api", docker.DefaultHost, `where the Docker engine listens, "" for no Docker`)
	fs.BoolVar(&f.plugin, "plugin", true, "be Docker's network and address driver weft, and have the network weft there")
	fs.StringVar(&f.pluginSocket, "plugin-socket", defaultPluginSocket, "where Docker finds the driver")
}

func (f *dockerFlags) check(c *daemon.Config) error {
	if f.api == "" {
		return nil
	}
	if _, err := docker.NewClient(f.api); err != nil {
		return fmt.Errorf("--docker-api: %w", err)
	}
	c.DockerHost = f.api
	if !f.plugin {
		return nil
	}
	if !strings.HasPrefix(f.pluginSocket, "/") || len(f.pluginSocket) > maxSocketPath {
		return fmt.Errorf("--plugin-socket %q: want an absolute path of up to %d characters", f.pluginSocket, maxSocketPath)
	}
	c.PluginSocket = f.pluginSocket
	return nil
}
