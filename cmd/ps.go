package cmd

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/docker"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/render"
)

func (a *app) ps() *cobra.Command {
	return &cobra.Command{
		Use:   "ps [CONTAINER...]",
		Short: "List attached containers with their addresses",
		Long: `Print one line for each attached container: its id, its MAC address and its
addresses. weft:expose is the host itself. For containers of CNI, also those whose
interface another plugin made, the first column is NAMESPACE/POD on Kubernetes, else
cni:NETWORK:CONTAINER:INTERFACE, and there is no MAC address. CONTAINER is an id or the
beginning of one, a name, or the path of a network namespace.`,
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
		words := []string{render.Word(label(k)), render.Word(mac)}
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
			if k.ID == w || k.Netns == w || k.Name != "" && k.Name == w || strings.HasPrefix(containerID(k), w) {
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

// leaseOwner begins the ID of a container of CNI: cni:NETWORK:CONTAINER:INTERFACE.
const leaseOwner = "cni:"

// containerID returns the id of the container in its engine or runtime, "" if it has none.
func containerID(k api.Attachment) string {
	switch parts := strings.Split(k.ID, ":"); {
	case strings.HasPrefix(k.ID, leaseOwner) && len(parts) == 4:
		return parts[2]
	case len(parts) == 1:
		return k.ID
	}
	return ""
}

// label returns what ps shows in its first column.
func label(k api.Attachment) string {
	if strings.HasPrefix(k.ID, leaseOwner) && k.Name != "" {
		return k.Name
	}
	return shortID(k.ID)
}

// shortID shortens the id of a container as Docker does.
func shortID(id string) string {
	if len(id) == 64 && !strings.Contains(id, ":") {
		return docker.ShortID(id)
	}
	return id
}
