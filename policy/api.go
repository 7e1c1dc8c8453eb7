package policy

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/policy/model"
	"github.com/weft-net/weft/policy/rules"
)

// Serve answers the control API's questions about policies on a unix socket until ctx ends.
func (e *Engine) Serve(ctx context.Context, socket string) error {
	l, err := api.ListenUnix(socket)
	if err != nil {
		return err
	}
	return api.Serve(ctx, l, api.Handler(api.PolicyRoutes(e)), e.log)
}

// ShowPolicy describes what policies allow to and from a pod, on whichever node the pod runs.
func (e *Engine) ShowPolicy(ctx context.Context, r api.PolicyShowRequest) (reply api.PolicyReply, err error) {
	askErr := e.ask(ctx, func(c *rules.Compiler) {
		var pod *model.Pod
		if pod, err = findPod(c.Cluster(), r.Pod); err == nil {
			reply.Lines = c.Cluster().Explain(pod)
		}
	})
	if askErr != nil {
		return reply, askErr
	}
	return reply, err
}

// TracePolicy reports whether policies allow a flow, as egress of its source and as ingress of its
// destination, on whichever nodes the pods run.
func (e *Engine) TracePolicy(ctx context.Context, r api.PolicyTraceRequest) (reply api.PolicyReply, err error) {
	askErr := e.ask(ctx, func(c *rules.Compiler) { reply, err = trace(c.Cluster(), r) })
	if askErr != nil {
		return reply, askErr
	}
	return reply, err
}

// trace evaluates the flow once for each IP family that both ends have.
func trace(c *model.Cluster, r api.PolicyTraceRequest) (reply api.PolicyReply, err error) {
	src, err := findAddrs(c, r.Source)
	if err != nil {
		return reply, err
	}
	dst, err := findAddrs(c, r.Destination)
	if err != nil {
		return reply, err
	}
	reply.Allowed = true
	for _, from := range src {
		i := slices.IndexFunc(dst, func(to netip.Addr) bool { return to.Is4() == from.Is4() })
		if i < 0 {
			continue
		}
		f := model.Flow{Src: from, Dst: dst[i]}
		if f.Protocol, f.Port, err = parsePort(c.Owner(f.Dst), r.Port, from.Is6()); err != nil {
			return reply, err
		}
		out, in := c.Judge(f, model.Egress), c.Judge(f, model.Ingress)
		word := "allowed"
		if !out.Allowed() || !in.Allowed() {
			word, reply.Allowed = "denied", false
		}
		to := endpoint(f.Dst, f.Port)
		reply.Lines = append(reply.Lines, fmt.Sprintf("%s: %s from %s to %s", word, protocolName(f.Protocol), f.Src, to))
		if f.Src == f.Dst {
			reply.Lines = append(reply.Lines, "  a pod may always connect to itself")
			continue
		}
		reply.Lines = append(reply.Lines, "  "+out.Text(model.Egress), "  "+in.Text(model.Ingress))
	}
	if len(reply.Lines) == 0 {
		return reply, usagef("trace %s to %s: the ends have no IP family in common", r.Source, r.Destination)
	}
	return reply, nil
}

func protocolName(p model.Protocol) string {
	if p == unix.IPPROTO_ICMP || p == unix.IPPROTO_ICMPV6 {
		return "icmp"
	}
	return p.String()
}

func usagef(format string, args ...any) error {
	return &api.Error{Class: api.Usage, Text: fmt.Sprintf(format, args...)}
}

func findPod(c *model.Cluster, name string) (*model.Pod, error) {
	key := model.Key{Namespace: "default", Name: name}
	if ns, rest, ok := strings.Cut(name, "/"); ok {
		key = model.Key{Namespace: ns, Name: rest}
	}
	if pod := c.Pod(key); pod != nil {
		return pod, nil
	}
	return nil, fmt.Errorf("look up pod %s: not in the cluster", key)
}

// findAddrs parses name as an address, or else returns the addresses of the pod with that name.
func findAddrs(c *model.Cluster, name string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{a.Unmap().WithZone("")}, nil
	}
	pod, err := findPod(c, name)
	if err != nil {
		return nil, err
	}
	if len(pod.Addrs) == 0 {
		return nil, fmt.Errorf("look up addresses of pod %s: it has none that policies apply to; it uses the host's network or is not running", pod.Key)
	}
	return pod.Addrs, nil
}

// parsePort parses [PROTOCOL/]PORT or icmp. PORT is a number or the name of a port of the
// destination pod.
func parsePort(to *model.Pod, s string, six bool) (model.Protocol, uint16, error) {
	if s == "icmp" && six {
		return unix.IPPROTO_ICMPV6, 0, nil
	}
	if s == "icmp" {
		return unix.IPPROTO_ICMP, 0, nil
	}
	protocol, port := model.TCP, s
	if word, rest, ok := strings.Cut(s, "/"); ok {
		i := slices.IndexFunc(protocols, func(p model.Protocol) bool { return p.String() == word })
		if i < 0 {
			return 0, 0, usagef("parse port %q: want tcp, udp or sctp before the slash", s)
		}
		protocol, port = protocols[i], rest
	}
	if n, err := strconv.ParseUint(port, 10, 16); err == nil && n > 0 {
		return protocol, uint16(n), nil
	}
	if to != nil {
		for _, named := range to.Ports {
			if named.Name == port && named.Protocol == protocol {
				return protocol, named.Port, nil
			}
		}
	}
	return 0, 0, usagef("parse port %q: want a number, or the name of a port of the destination", s)
}

var protocols = []model.Protocol{model.TCP, model.UDP, model.SCTP}
