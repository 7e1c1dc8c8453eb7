package cmd

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/render"
)

func (a *app) policy() *cobra.Command {
	c := &cobra.Command{
		Use:   "policy",
		Short: "Ask what NetworkPolicies allow",
		Long: `Ask weft on this Kubernetes node about NetworkPolicies. Every node knows the whole
cluster, so any node can be asked about any pod.`,
		Args: subcommand,
		RunE: showHelp,
	}
	socket := os.Getenv("WEFT_POLICY_SOCKET")
	if socket == "" {
		socket = api.DefaultPolicySocket
	}
	c.PersistentFlags().StringVar(&socket, "policy-socket", socket, "socket of the policy engine (WEFT_POLICY_SOCKET)")
	c.AddCommand(a.policyShow(&socket), a.policyTrace(&socket))
	return c
}

func (a *app) policyShow(socket *string) *cobra.Command {
	return &cobra.Command{
		Use:   "show POD",
		Short: "Show which policies isolate a pod, and what they allow",
		Long: `Print, for each direction, which policies isolate a pod and what each of them
allows. POD is NAMESPACE/NAME, or NAME in the namespace default.`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("%s: want one pod", c.CommandPath())
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			reply, err := api.NewClient(*socket).ShowPolicy(c.Context(), api.PolicyShowRequest{Pod: args[0]})
			return a.policyReply(reply, err, *socket)
		},
	}
}

func (a *app) policyTrace(socket *string) *cobra.Command {
	return &cobra.Command{
		Use:   "trace SOURCE DESTINATION PORT",
		Short: "Show whether policies allow a flow, and which",
		Long: `Print whether policies allow a flow, and which policy allows it or isolates the pod.
SOURCE and DESTINATION are pods, NAMESPACE/NAME or NAME in the namespace default, or
addresses. For a Service give a pod behind it, as policies apply after translation.
PORT is [tcp|udp|sctp/]NUMBER, the name of a port of the destination,
or icmp.

    weft policy trace shop/web-1 shop/db-0 5432
    weft policy trace shop/web-1 192.0.2.7 udp/53`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) != 3 {
				return usagef("%s: want a source, a destination and a port", c.CommandPath())
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			r := api.PolicyTraceRequest{Source: args[0], Destination: args[1], Port: args[2]}
			reply, err := api.NewClient(*socket).TracePolicy(c.Context(), r)
			return a.policyReply(reply, err, *socket)
		},
	}
}

func (a *app) policyReply(reply api.PolicyReply, err error, socket string) error {
	if errors.Is(err, api.ErrNotRunning) {
		return fmt.Errorf("no policies are enforced on this host: no process listens on %s; weft-kube does on a Kubernetes node", socket)
	}
	for _, line := range reply.Lines {
		render.Fprintln(a.stdout, line)
	}
	return err
}
