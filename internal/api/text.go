package api

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/weft-net/weft/internal/count"
	"github.com/weft-net/weft/internal/render"
)

// view is the text of GET /status/NAME.
type view struct {
	text  func(*Report, io.Writer)
	lists Lists // that it shows
}

// views has the overview, of GET /status, under "".
var views = map[string]view{
	"":            {(*Report).overview, NoLists},
	"targets":     {(*Report).targets, NoLists},
	"connections": {(*Report).connections, ListRelayed},
	"peers":       {(*Report).peers, ListPeers},
	"dns":         {(*Report).dns, ListNames},
	"ipam":        {(*Report).ipam, NoLists},
	"bindings":    {(*Report).bindings, ListBindings},
	"multicast":   {(*Report).multicast, ListGroups},
}

// Views returns the names of the views of status, sorted.
func Views() []string {
	names := slices.Sorted(maps.Keys(views))
	return names[1:] // the first is the overview, which has no name
}

// Text writes one view of the report, the overview for "". Names and reasons, which others
// choose, are encoded by package render: no name makes a line or a column.
func (r *Report) Text(w io.Writer, view string) error {
	if err := checkView(view); err != nil {
		return err
	}
	views[view].text(r, w)
	return nil
}

func checkView(view string) error {
	if _, ok := views[view]; !ok {
		return Errorf(Usage, "status has no view %q; it has %s", view, strings.Join(Views(), ", "))
	}
	return nil
}

// BindingsView is the view that can be limited to a peer or an address.
const BindingsView = "bindings"

// LimitedTo returns the report with only what a view has of a peer, given by name or nickname, or
// of an address; all for "". It is an error if the view cannot be limited, or has nothing of that.
func (r *Report) LimitedTo(view, of string) (*Report, error) {
	if err := checkLimit(view, of); err != nil || of == "" {
		return r, err
	}
	limited := *r
	limited.Bindings.Entries = nil
	for _, b := range r.Bindings.Entries {
		if b.matches(of) {
			limited.Bindings.Entries = append(limited.Bindings.Entries, b)
		}
	}
	if len(limited.Bindings.Entries) == 0 && r.Omitted["Bindings.Entries"] == 0 {
		return nil, fmt.Errorf("status %s %s: this router knows no binding of such a peer or address", view, of)
	}
	return &limited, nil
}

// checkLimit returns the error of LimitedTo that does not depend on the state of the router.
func checkLimit(view, of string) error {
	if of != "" && view != BindingsView {
		return Errorf(Usage, "status %s %s: only status %s can be limited to a peer or an address", view, of, BindingsView)
	}
	return nil
}

func (r *Report) overview(w io.Writer) {
	line := func(key, format string, args ...any) {
		render.Fprintf(w, "%15s: %s\n", key, render.Sprintf(format, args...))
	}
	line("Version", "%s", r.Version)
	render.Fprintln(w)
	line("Service", "router")
	line("Protocol", "%s %d..%d", r.Router.Protocol, r.Router.ProtocolMinVersion, r.Router.ProtocolMaxVersion)
	line("Name", "%s(%s)", r.Router.Name, r.Router.NickName)
	if r.Router.Encryption {
		line("Encryption", "enabled")
	} else {
		line("Encryption", "unauthenticated: no password is set, so every host that reaches this one can join")
	}
	line("PeerDiscovery", "%s", enabled(r.Router.PeerDiscovery))
	line("Targets", "%d", len(r.Router.Targets))
	line("Connections", "%s", countConnections(r.Router.Connections, r.Omitted["Connections"]))
	line("Peers", "%s", r.countPeers())
	line("TrustedSubnets", "%s", orNone(joinPrefixes(r.Router.TrustedSubnets)))
	for _, u := range []*IPAM{r.IPAM, r.IPAM6} {
		if u == nil {
			continue
		}
		render.Fprintln(w)
		line("Service", "ipam")
		line("Status", "%s", u.Status)
		line("Range", "%s", u.Range)
		line("DefaultSubnet", "%s", u.DefaultSubnet)
		for i := range u.Votes {
			line("Vote", "%s", u.Votes[i].Count())
		}
	}
	if r.IPAM == nil && r.IPAM6 == nil {
		render.Fprintln(w)
		line("Service", "ipam")
		line("Status", "off")
	}
	render.Fprintln(w)
	line("Service", "dns")
	if r.DNS == nil {
		line("Status", "off")
	} else {
		r.DNS.overview(line, r.Omitted["DNS.Entries"])
	}
	if b := r.Bindings; b.Known > 0 {
		render.Fprintln(w)
		line("Service", "bindings")
		refused := ""
		if b.Refused > 0 {
			refused = fmt.Sprintf(", addresses not believed: %d", b.Refused)
		}
		line("Entries", "%d (%d of this host%s)", b.Known, b.Own, refused)
		n := r.Router.Neighbours
		line("Requests", "%d stayed on this host, %d went to all hosts (ARP and neighbour discovery)", n.Answered+n.Local, n.Flooded)
	}
	if m := r.Multicast; m.Known+m.Own > 0 || m.Pruned+m.Unwanted > 0 {
		render.Fprintln(w)
		line("Service", "multicast")
		line("Groups", "%d of all hosts (%d of this host)", m.Known, m.Own)
		line("Frames", "%d only to hosts that want the group, %d to none, %d to all", m.Pruned, m.Unwanted, m.Flooded)
	}
	r.docker(w, line)
	if len(r.Kernel.Repairs) > 0 {
		var repairs []string
		for _, kind := range slices.Sorted(maps.Keys(r.Kernel.Repairs)) {
			repairs = append(repairs, fmt.Sprintf("%s %d", kind, r.Kernel.Repairs[kind]))
		}
		render.Fprintln(w)
		line("Repairs", "%s (changes by other software; see the log)", strings.Join(repairs, ", "))
	}
	for i, text := range r.Warnings {
		if i == 0 {
			render.Fprintln(w)
		}
		line("Warning", "%s", text)
	}
}

func (r *Report) docker(w io.Writer, line func(key, format string, args ...any)) {
	if r.Docker == nil {
		return
	}
	state := count.Of(r.Docker.Containers, "container runs", "containers run")
	if r.Docker.State != "" {
		state = "not known: " + r.Docker.State
	}
	render.Fprintln(w)
	line("Service", "docker")
	line("Engine", "%s", r.Docker.Host)
	line("Status", "%s", state)
	if r.Docker.DriverName != "" {
		line("DriverName", "%s", r.Docker.DriverName)
	}
	for _, a := range r.Docker.ProxyAddresses {
		line("Proxy", "%s", a)
	}
}

func (r *Report) targets(w io.Writer) {
	for _, t := range r.Router.Targets {
		render.Fprintln(w, t)
	}
}

// connections writes one line per link: direction, address, state, kind and
// encryption, peer, MTU, and why it is not faster.
func (r *Report) connections(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	for _, c := range r.Router.Connections {
		direction := "<-"
		if c.Outbound {
			direction = "->"
		}
		kind := "-"
		if c.Kind != "" {
			kind = c.Kind
			if c.Express {
				kind += " express"
			}
			if c.Encrypted {
				kind += " encrypted"
			} else {
				kind += " unencrypted"
			}
		}
		who := "-"
		if c.Name != "" {
			who = named(c.Name, c.NickName)
		}
		var more []string
		if c.MTU > 0 {
			more = append(more, fmt.Sprintf("mtu=%d", c.MTU))
		}
		if c.Encap != "" {
			more = append(more, "encap="+c.Encap)
		}
		if c.RTT > 0 {
			more = append(more, fmt.Sprintf("rtt=%s", c.RTT.Round(10*time.Microsecond)))
		}
		if c.Info != "" {
			more = append(more, c.Info)
		}
		render.Fprintf(tw, "%s %s\t%s\t%s\t%s\t%s\n", direction, render.Word(c.Address), render.Word(c.State), kind, who, strings.Join(more, " "))
	}
	for _, p := range r.Router.Relayed {
		kind := "not sealed"
		switch {
		case p.Sealed:
			kind = "sealed end to end"
		case r.Router.Encryption:
			kind = "no keys yet"
		}
		render.Fprintf(tw, "=> over %s\trelayed\t%s\t%s\t%s\n", named(p.Via, p.ViaNickName), kind, named(p.Name, p.NickName), p.Info)
	}
	tw.Flush()
	r.omitted(w, "Connections", "connection", "connections")
	r.omitted(w, "Relayed", "relayed peer", "relayed peers")
}

// omitted says how many entries a list leaves out, if it does.
func (r *Report) omitted(w io.Writer, list, one, many string) {
	if n := r.Omitted[list]; n > 0 {
		render.Fprintf(w, "and %d more %s\n", n, count.Form(n, one, many))
	}
}

func (r *Report) peers(w io.Writer) {
	defer r.omitted(w, "Peers", "peer", "peers")
	for _, p := range r.Router.Peers {
		render.Fprintln(w, named(p.Name, p.NickName))
		for _, c := range p.Connections {
			direction, state := "<-", "pending"
			if c.Outbound {
				direction = "->"
			}
			if c.Established {
				state = "established"
			}
			render.Fprintf(w, "   %s %-21s %-40s %s\n", direction, render.Word(c.Address), named(c.Name, c.NickName), state)
		}
		if p.OmittedConnections > 0 {
			render.Fprintf(w, "   and %d more\n", p.OmittedConnections)
		}
	}
}

func (d *DNS) overview(line func(key, format string, args ...any), omitted int) {
	line("Domain", "%s", d.Domain)
	var at, idle, upstream []string
	for _, l := range d.Listening {
		for _, a := range l.Addresses {
			at = append(at, a.String())
		}
		switch {
		case l.Idle:
			idle = append(idle, l.Fault)
		case l.Fault != "":
			at = append(at, "("+l.Fault+")")
		}
	}
	if len(at) == 0 && len(idle) > 0 {
		at = []string{"none: " + strings.Join(idle, ", ")}
	}
	for _, u := range d.Upstream {
		word := u.Address.Addr().String()
		if u.Fault != "" {
			word += " (" + u.Fault + ")"
		}
		upstream = append(upstream, word)
	}
	line("Address", "%s", orNone(strings.Join(at, ", ")))
	line("Upstream", "%s", orNone(strings.Join(upstream, ", ")))
	line("TTL", "%d", d.TTL)
	line("Entries", "%d", len(d.Entries)+omitted)
}

// dns writes one line per entry: host name, without the domain of the router, address,
// container and peer.
func (r *Report) dns(w io.Writer) {
	if r.DNS == nil {
		render.Fprintln(w, "dns is off: this router was launched with --no-dns")
		return
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, e := range r.DNS.Entries {
		render.Fprintf(tw, "%s\t%s\t%s\t%s", render.Word(strings.TrimSuffix(e.Hostname, "."+r.DNS.Domain)), e.Address,
			render.Word(shortID(e.ContainerID)), named(e.Origin, e.NickName))
		if e.Refused != "" {
			render.Fprintf(tw, "\tnot answered: %s", e.Refused)
		}
		render.Fprintln(tw)
	}
	tw.Flush()
	r.omitted(w, "DNS.Entries", "entry", "entries")
}

// bindings writes one line per MAC address: the address, what has it, its IP addresses, and the peer
// on whose host it is.
func (r *Report) bindings(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, b := range r.Bindings.Entries {
		addrs := make([]string, len(b.Addresses))
		for i, a := range b.Addresses {
			addrs[i] = a.String()
		}
		render.Fprintf(tw, "%s\t%s\t%s\t%s", render.Word(b.MAC), render.Word(b.Kind), orDash(strings.Join(addrs, ",")), named(b.Peer, b.NickName))
		if b.Refused != "" {
			render.Fprintf(tw, "\tnot believed: %s", b.Refused)
		}
		render.Fprintln(tw)
	}
	tw.Flush()
	r.omitted(w, "Bindings.Entries", "binding", "bindings")
}

// multicast writes one line per group and host.
func (r *Report) multicast(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, g := range r.Multicast.Groups {
		group := "all"
		if g.Group.IsValid() {
			group = g.Group.String()
		}
		render.Fprintf(tw, "%s\t%s\n", group, named(g.Peer, g.NickName))
	}
	tw.Flush()
	r.omitted(w, "Multicast.Groups", "group", "groups")
	if r.Multicast.All {
		render.Fprintln(w, "this host gets the frames of all groups: it has a multicast router or querier, or too many groups, or its router has just been started")
	}
}

// shortID shortens the id of a container as Docker does.
func shortID(id string) string {
	const long, short = 64, 12
	if len(id) == long && strings.Trim(id, "0123456789abcdef") == "" {
		return id[:short]
	}
	return id
}

func (r *Report) ipam(w io.Writer) {
	if r.IPAM == nil && r.IPAM6 == nil {
		render.Fprintln(w, "ipam is off: this router was launched with --ipalloc-range=\"\"")
		return
	}
	for _, u := range []*IPAM{r.IPAM, r.IPAM6} {
		if u != nil {
			u.text(w)
		}
	}
	if r.Router.Banned != "" {
		render.Fprintln(w, r.Router.Banned)
	}
	if len(r.Attachments) == 0 {
		return
	}
	render.Fprintln(w, "in use on this host:")
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, a := range r.Attachments {
		render.Fprintf(tw, "  %s\t%s\n", render.Word(cmp.Or(a.Name, a.Label())), joinPrefixes(a.Addresses))
	}
	tw.Flush()
}

func (u *IPAM) text(w io.Writer) {
	render.Fprintf(w, "%s: %s\n", u.Range, u.Status)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, o := range u.Owners {
		percent := 0.0
		if u.RangeNumIPs > 0 {
			percent = 100 * o.NumIPs / u.RangeNumIPs
		}
		var more []string
		if o.Active > 0 {
			more = append(more, fmt.Sprintf("(%d active)", o.Active))
		}
		if !o.Reachable {
			more = append(more, "- unreachable!")
		}
		render.Fprintf(tw, "%s\t%s\t(%04.1f%% of total)\t%s\n", named(o.Peer, o.NickName), countIPs(o.NumIPs), percent, strings.Join(more, " "))
	}
	tw.Flush()
	if len(u.Voters) > 0 {
		var voters []string
		for _, v := range u.Voters {
			text := named(v.Peer, v.NickName)
			if !v.Reachable {
				text += " - unreachable!"
			}
			voters = append(voters, text)
		}
		render.Fprintf(w, "voters: %s; %d of %d %s\n", strings.Join(voters, ", "), u.Quorum, len(u.Voters), count.Form(u.Quorum, "decides", "decide"))
	}
	for _, b := range u.Banned {
		render.Fprintf(w, "banned: %s\n", render.Word(b))
	}
	for i := range u.Votes {
		render.Fprintf(w, "vote: %s\n", u.Votes[i].Text())
	}
	for _, k := range u.Kept {
		if k.Open {
			render.Fprintf(w, "kept for hosts that use some of the addresses of %s, for a few seconds: %s\n", named(k.Peer, k.NickName), countIPs(k.NumIPs))
			continue
		}
		render.Fprintf(w, "kept for %s until %s, if it returns: %s (weft rmpeer %s here frees them)\n",
			named(k.Peer, k.NickName), k.Until.Format("15:04:05"), countIPs(k.NumIPs), k.Peer)
	}
	for _, p := range u.PendingAllocates {
		render.Fprintf(w, "waiting to allocate: %s\n", p)
	}
	for _, p := range u.PendingClaims {
		render.Fprintf(w, "waiting to claim: %s\n", p)
	}
}

func countIPs(n float64) string { return count.Of(n, "IP", "IPs") }

func (r *Report) countPeers() string {
	established, pending := r.Router.PeerConnections.Established, r.Router.PeerConnections.Pending
	s := fmt.Sprint(len(r.Router.Peers) + r.Omitted["Peers"])
	switch {
	case established > 0 && pending > 0:
		s += fmt.Sprintf(" (with %d established, %s)", established, count.Of(pending, "pending connection", "pending connections"))
	case established > 0:
		s += fmt.Sprintf(" (with %s)", count.Of(established, "established connection", "established connections"))
	case pending > 0:
		s += fmt.Sprintf(" (with %s)", count.Of(pending, "pending connection", "pending connections"))
	}
	return s
}

func countConnections(cs []Connection, omitted int) string {
	counts := make(map[string]int)
	for _, c := range cs {
		counts[c.State]++
	}
	parts := make([]string, 0, len(counts))
	for _, state := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%d %s", counts[state], state))
	}
	if len(parts) == 0 {
		return "0"
	}
	if omitted > 0 {
		parts = append(parts, fmt.Sprintf("%d not counted by state", omitted))
	}
	return fmt.Sprintf("%d (%s)", len(cs)+omitted, strings.Join(parts, ", "))
}

func named(name, nick string) string {
	if nick == "" {
		return render.Word(name)
	}
	return render.Word(name) + "(" + render.Word(nick) + ")"
}

func enabled(on bool) string {
	if on {
		return "enabled"
	}
	return "disabled"
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func joinPrefixes(ps []netip.Prefix) string {
	ss := make([]string, len(ps))
	for i, p := range ps {
		ss[i] = p.String()
	}
	return strings.Join(ss, ",")
}
