package cmd

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/weft-net/weft/dns"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/render"
)

func (a *app) dnsArgs() *cobra.Command {
	return &cobra.Command{
		Use:   "dns-args [ARGUMENTS OF DOCKER RUN...]",
		Short: "Print the arguments of docker run that make a container use weft's DNS",
		Long: `Print --dns and --dns-search for docker run, so that a container resolves the names
of others:

    docker run $(weft dns-args) ...

Given the arguments of docker run, the command omits --dns-search if that is among
them, and adds a --hostname in the domain if there is --name but no --hostname.
Nothing is printed if the router was launched with --no-dns.`,
		DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 && args[0] == "--help" {
				return c.Help()
			}
			run := a.parseDockerRun(args)
			r, err := a.client().Summary(c.Context(), api.NoLists)
			if err != nil || r.DNS == nil {
				return err
			}
			words, err := run.dnsArgs(r.DNS)
			if err != nil {
				return err
			}
			render.Fprintln(a.stdout, strings.Join(words, " "))
			return nil
		},
	}
}

// dockerRun are the names in the arguments of docker run.
type dockerRun struct {
	name, hostname string
	search         []string
}

// parseDockerRun reads arguments of docker run. They may have --socket, which every
// command of weft takes.
func (a *app) parseDockerRun(args []string) (r dockerRun) {
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	fs.ParseErrorsAllowlist.UnknownFlags = true
	fs.Usage = func() {}
	fs.SetInterspersed(false) // arguments behind the image are the container's
	fs.StringVar(&a.socket, "socket", a.socket, "")
	fs.StringVar(&r.name, "name", "", "")
	fs.StringVarP(&r.hostname, "hostname", "h", "", "")
	fs.StringArrayVar(&r.search, "dns-search", nil, "")
	_ = fs.Parse(args) // docker reports errors in them
	return r
}

// dnsArgs returns the arguments to add.
func (r *dockerRun) dnsArgs(d *api.DNS) ([]string, error) {
	if d.Address == "" {
		return nil, errors.New("the DNS server has no address to listen on; 'weft status' says why")
	}
	at, err := netip.ParseAddrPort(d.Address)
	if err != nil {
		return nil, fmt.Errorf("the router says that its DNS server listens at %q: %w", d.Address, err)
	}
	if at.Port() != dns.Port {
		return nil, fmt.Errorf("the DNS server listens at %s, but containers can only use port %d", at, dns.Port)
	}
	words := []string{"--dns=" + at.Addr().String()}
	if len(r.search) == 0 {
		words = append(words, "--dns-search="+d.Domain)
	}
	if r.name != "" && r.hostname == "" {
		words = append(words, "--hostname="+r.name+"."+d.Domain)
	}
	return words, nil
}
