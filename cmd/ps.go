package cmd

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/render"
)

func (a *app) ps() *cobra.Command {
	return &cobra.Command{
		Use:   "ps [CONTAINER...]",
		Short: "List attached containers with their addresses",
		Long: `Print one line for each attached container: what names it, its MAC address and its
addresses. The first column is the id of a container of Docker's or of a runtime that
uses CNI, NAMESPACE/POD on Kubernetes, or the path of a network namespace. weft:expose
is the host itself. The MAC address is - if the kernel does not know it, as for
interfaces that another CNI plugin made. CONTAINER is an id or the beginning of one, a
name, or the path of a network namespace.`,
		RunE: func(c *cobra.Command, args []string) error {
			return runPs(c.Context(), a.client(), args, a.stdout)
		},
	}
}

func runPs(ctx context.Context, client *api.Client, which []string, stdout io.Writer) error {
	list, err := client.Attachments(ctx)
	if err != nil {
		return err
	}
	if len(which) > 0 {
		if list, err = choose(list, which); err != nil {
			return err
		}
	}
	for _, k := range list {
		mac := k.MAC
		if mac == "" {
			mac = "-"
		}
		words := []string{render.Word(k.Label()), render.Word(mac)}
		for _, p := range k.Addresses {
			words = append(words, p.String())
		}
		render.Fprintln(stdout, strings.Join(words, " "))
	}
	return nil
}

// choose returns the attachments that are named. Each must be there.
func choose(list []api.Attachment, which []string) ([]api.Attachment, error) {
	wanted := make([]bool, len(list))
	for _, w := range which {
		found := false
		for i, k := range list {
			if k.ID == w || k.Netns == w || k.Label() == w || k.Name != "" && k.Name == w || strings.HasPrefix(k.ContainerID(), w) {
				wanted[i], found = true, true
			}
		}
		if !found {
			return nil, fmt.Errorf("container %s is not attached", w)
		}
	}
	var chosen []api.Attachment
	for i, k := range list {
		if wanted[i] {
			chosen = append(chosen, k)
		}
	}
	return chosen, nil
}
