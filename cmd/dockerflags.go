package cmd

import (
	"fmt"

	"github.com/spf13/pflag"

	"github.com/weft-net/weft/cmd/daemon"
	"github.com/weft-net/weft/docker"
)

// dockerFlags are the flags of weft launch that are about Docker.
type dockerFlags struct {
	api string
}

func (f *dockerFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.api, "docker-api", docker.DefaultHost, `where the Docker engine listens, "" for no Docker`)
}

func (f *dockerFlags) check(c *daemon.Config) error {
	if f.api == "" {
		return nil
	}
	if _, err := docker.NewClient(f.api); err != nil {
		return fmt.Errorf("--docker-api: %w", err)
	}
	c.DockerHost = f.api
	return nil
}
