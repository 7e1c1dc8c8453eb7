package cmd

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/api"
)

// Where Docker's clients find the engine, and where env keeps what was there.
const (
	dockerHostVar = "DOCKER_HOST"
	savedHostVar  = "ORIG_DOCKER_HOST"
)

func (a *app) env() *cobra.Command {
	var restore bool
	c := &cobra.Command{
		Use:   "env [--restore]",
		Short: "Print what a shell needs to reach Docker through weft",
		Long: `Print commands for a shell after which docker talks to the proxy, so that the
containers it makes are on the switch; with --restore, those that undo it:

    eval $(weft env)
    docker run -d --name web nginx
    eval $(weft env --restore)

Without a proxy nothing is printed.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if restore {
				fmt.Fprint(a.stdout, restoreEnv(os.LookupEnv))
				return nil
			}
			addr, err := a.proxyAddress(c)
			if err != nil || addr == "" {
				return err
			}
			fmt.Fprint(a.stdout, saveEnv(addr, os.Getenv(dockerHostVar)))
			return nil
		},
	}
	c.Flags().BoolVar(&restore, "restore", false, "print how to undo it")
	return c
}

func (a *app) config() *cobra.Command {
	return &cobra.Command{
		Use:   "config",
		Short: "Print the arguments for one call of docker through weft",
		Long: `Print the arguments that have one call of docker go to the proxy:

    docker $(weft config) run -d --name web nginx

Without a proxy nothing is printed.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			addr, err := a.proxyAddress(c)
			if err != nil || addr == "" {
				return err
			}
			fmt.Fprintln(a.stdout, "-H="+addr)
			return nil
		},
	}
}

// proxyAddress asks the router where its proxy is, "" for nowhere.
func (a *app) proxyAddress(c *cobra.Command) (string, error) {
	r, err := a.client().Report(c.Context())
	if err != nil {
		return "", err
	}
	return chooseProxy(r.Docker), nil
}

// chooseProxy prefers a unix socket, which needs no certificates.
func chooseProxy(d *api.Docker) string {
	if d == nil || len(d.ProxyAddresses) == 0 {
		return ""
	}
	for _, addr := range d.ProxyAddresses {
		if strings.HasPrefix(addr, "unix://") {
			return addr
		}
	}
	return strings.Replace(d.ProxyAddresses[0], "//0.0.0.0:", "//127.0.0.1:", 1)
}

// saveEnv returns the commands that set DOCKER_HOST to addr and keep what was.
func saveEnv(addr, was string) string {
	if was == addr {
		return ""
	}
	return fmt.Sprintf("export %s=%s %s=%s\n", dockerHostVar, quote(addr), savedHostVar, quote(was))
}

// restoreEnv returns the commands that undo saveEnv's.
func restoreEnv(lookup func(string) (string, bool)) string {
	switch was, saved := lookup(savedHostVar); {
	case !saved:
		return ""
	case was == "":
		return fmt.Sprintf("unset %s %s\n", dockerHostVar, savedHostVar)
	default:
		return fmt.Sprintf("export %s=%s; unset %s\n", dockerHostVar, quote(was), savedHostVar)
	}
}

// quote quotes a word for a shell where that is needed.
func quote(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("/:._-", r)
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
