package cmd

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/api"
)

// The variable in which Docker's clients find the engine, and the one in which env
// saves its value.
const (
	dockerHostVar = "DOCKER_HOST"
	savedHostVar  = "ORIG_DOCKER_HOST"
)

func (a *app) env() *cobra.Command {
	var restore bool
	c := &cobra.Command{
		Use:   "env [--restore]",
		Short: "Print the commands that make docker use weft's proxy",
		Long: `Print commands for a shell that make docker use weft's proxy, so that new containers
are on the switch; with --restore, the commands that undo this:

    eval $(weft env)
    docker run -d --name web nginx
    eval $(weft env --restore)

Without a proxy nothing is printed.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if restore {
				io.WriteString(a.stdout, restoreEnv(os.LookupEnv))
				return nil
			}
			addr, err := a.proxyAddress(c)
			if err != nil || addr == "" {
				return err
			}
			io.WriteString(a.stdout, saveEnv(addr, os.Getenv(dockerHostVar)))
			return nil
		},
	}
	c.Flags().BoolVar(&restore, "restore", false, "print the commands that undo it")
	return c
}

// proxyAddress asks the router where its proxy listens, "" if there is none.
func (a *app) proxyAddress(c *cobra.Command) (string, error) {
	r, err := a.client().Summary(c.Context(), api.NoLists)
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

// saveEnv returns the commands that set DOCKER_HOST to addr and save its value.
func saveEnv(addr, was string) string {
	if was == addr {
		return ""
	}
	return fmt.Sprintf("export %s=%s %s=%s\n", dockerHostVar, quote(addr), savedHostVar, quote(was))
}

// restoreEnv returns the commands that undo those of saveEnv.
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

// quote quotes a word for a shell if that is needed.
func quote(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("/:._-", r)
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
