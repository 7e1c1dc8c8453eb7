package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/daemon"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/count"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/render"
	"github.com/weft-net/weft/router/fastpath/plan"
)

// verdict is the severity of a finding.
type verdict string

const (
	fine verdict = "OK"
	warn verdict = "WARN" // weft works with a restriction
	fail verdict = "FAIL" // weft does not work
)

// finding is one line of doctor.
type finding struct {
	verdict verdict
	subject string
	text    string // the state, and advice
}

// doctor examines a host.
type doctor struct {
	client *api.Client
	port   int
	subnet netip.Prefix // the range of addresses, may be unset
	now    time.Time
}

func (a *app) doctor() *cobra.Command {
	d := doctor{subnet: netip.MustParsePrefix(daemon.DefaultRange)}
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Check this host and its router, and give advice",
		Long: `Check what the router needs of this host, and the state of a running router and its
peers. Each line is OK, WARN (works with a restriction) or FAIL, with advice. The
exit code is 1 if a check fails.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if d.port < 1 || d.port > 65533 {
				return usagef("%s: --port %d: want 1 to 65533", c.CommandPath(), d.port)
			}
			d.client, d.now = a.client(), time.Now()
			return d.run(c.Context(), a.stdout)
		},
	}
	c.Flags().IntVar(&d.port, "port", daemon.DefaultPort, "port of the router")
	parsedVar(c.Flags(), &d.subnet, parseRange, "ipalloc-range", daemon.DefaultRange, `range that addresses are given from, "" for none`)
	return c
}

func (d *doctor) run(ctx context.Context, stdout io.Writer) error {
	report, err := d.client.Summary(ctx, api.NoLists)
	running := err == nil
	findings := d.local(running)
	if !running {
		findings = append(findings, d.ports()...)
	}
	findings = append(findings, d.mtu(), d.clock(), d.routes(), d.limits())
	switch {
	case running:
		findings = append(findings, routerFindings(report)...)
	case errors.Is(err, api.ErrNotRunning):
		findings = append(findings, finding{fine, "router", "does not run; start it with: weft launch"})
	default:
		findings = append(findings, finding{fail, "router", err.Error()})
	}
	failed := 0
	for _, f := range findings {
		if f.verdict == fail {
			failed++
		}
		render.Fprintf(stdout, "%-4s  %s: %s\n", f.verdict, f.subject, oneLine(errors.New(f.text)))
	}
	if failed > 0 {
		return fmt.Errorf("doctor: %d of %s failed", failed, count.Of(len(findings), "check", "checks"))
	}
	return nil
}

// sysAdmin is the capability that a router in its own pod does without.
const sysAdmin = "CAP_SYS_ADMIN"

// lackingRights returns the names of the capabilities that this process lacks.
func lackingRights() (lacks []string, err error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil, err
	}
	var have uint64
	for line := range strings.SplitSeq(string(b), "\n") {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			have, _ = strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		}
	}
	for _, c := range []struct {
		name string
		bit  int
	}{{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN}, {"CAP_NET_RAW", unix.CAP_NET_RAW}, {sysAdmin, unix.CAP_SYS_ADMIN}} {
		if have&(1<<c.bit) == 0 {
			lacks = append(lacks, c.name)
		}
	}
	return lacks, nil
}

// local checks the rights of this process and the features of the kernel. In its own pod a router
// that runs does without the right to try them.
func (d *doctor) local(running bool) []finding {
	lacks, err := lackingRights()
	switch {
	case err != nil:
		return append([]finding{{fail, "rights", err.Error()}}, d.kernel()...)
	case running && slices.Equal(lacks, []string{sysAdmin}):
		return []finding{
			{fine, "rights", sysAdmin + " is missing, as in weft's own pod, where the router does without"},
			{fine, "kernel", "its features were not tried, as that takes " + sysAdmin + "; the router runs, and what it lacks is below"},
		}
	case len(lacks) > 0:
		return append([]finding{{fail, "rights", strings.Join(lacks, ", ") + " missing; run weft as root, in a container with --privileged"}}, d.kernel()...)
	}
	return append([]finding{{fine, "rights", "the router has all that it needs"}}, d.kernel()...)
}

// kernel tries each feature in a network namespace of its own.
func (d *doctor) kernel() []finding {
	name := "weft-doctor-" + strconv.Itoa(os.Getpid())
	if err := netdev.NewNS(name); err != nil {
		return []finding{{fail, "kernel", "no network namespace can be made, so no feature was tried: " + err.Error()}}
	}
	defer netdev.DeleteNS(name)
	var findings []finding
	for _, t := range []struct {
		subject string
		without verdict
		try     func() error
		advice  string
	}{
		{"bridge", fail, func() error {
			return netdev.EnsureBridge("weft0", net.HardwareAddr{2, 0, 0, 0, 0, 1}, daemon.DefaultMTU, netdev.ProcSys)
		}, "load it with: modprobe bridge"},
		{"veth", fail, tryVeth, "load it with: modprobe veth"},
		{"/dev/net/tun", fail, tryTAP, "load it with: modprobe tun; in a container pass --device /dev/net/tun"},
		{"nftables", fail, tryNftables, "load it with: modprobe nf_tables"},
		{"vxlan", warn, tryVXLAN, "without it there is no fast datapath; load it with: modprobe vxlan"},
		{"nftables fib", warn, tryGuard, "without it there is no fast datapath; load it with: modprobe nft_fib_inet"},
		{"wireguard", warn, tryWireGuard, "without it the fast datapath does not encrypt, and is not used where a password is set; load it with: modprobe wireguard"},
		{"udp segmentation", warn, tryUDPSegment, "without it sleeve is slower; a kernel from 4.18 on has it"},
	} {
		if err := netdev.Do(netdev.NSByName(name), t.try); err != nil {
			findings = append(findings, finding{t.without, t.subject, fmt.Sprintf("does not work: %v; %s", err, t.advice)})
		} else {
			findings = append(findings, finding{fine, t.subject, "works"})
		}
	}
	return findings
}

func tryVeth() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "veth0"
	v := netlink.NewVeth(attrs)
	v.PeerName = "veth1"
	return netlink.LinkAdd(v)
}

func tryTAP() error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	req, err := unix.NewIfreq("tap0")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	return unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, req)
}

func tryVXLAN() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "vxlan0"
	return netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, FlowBased: true, Port: 6784})
}

func tryNftables() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	t := c.AddTable(&nftables.Table{Name: "weft", Family: nftables.TableFamilyINet})
	c.AddChain(&nftables.Chain{
		Name: "nat", Table: t, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	return c.Flush()
}

func tryGuard() error {
	_, err := netdev.Guard(netdev.Guarded{Port: 6784, Tunnel: 6785, Sealed: plan.TunnelPrefix, Sleeve: 6783, Bridge: netdev.BridgeName, IPIP: true})
	return err
}

func tryWireGuard() error {
	return netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "wireguard0"}})
}

func tryUDPSegment() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1200)
}

// ports tries to listen where the router will.
func (d *doctor) ports() []finding {
	check := func(port int, proto string, without verdict, c io.Closer, err error) finding {
		subject := fmt.Sprintf("port %d/%s", port, proto)
		if err != nil {
			return finding{without, subject, err.Error() + "; end the process that uses it, or launch every router of the mesh with another --port"}
		}
		c.Close()
		return finding{fine, subject, "free"}
	}
	l, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(d.port)))
	found := []finding{check(d.port, "tcp", fail, l, err)}
	// The fast datapath uses the next two ports. Without them there is sleeve.
	for port, without := range map[int]verdict{d.port: fail, d.port + 1: warn, d.port + 2: warn} {
		u, err := net.ListenPacket("udp", net.JoinHostPort("", strconv.Itoa(port)))
		found = append(found, check(port, "udp", without, u, err))
	}
	slices.SortFunc(found, func(a, b finding) int { return strings.Compare(a.subject, b.subject) })
	return found
}

// linkOverhead is the room in bytes that the default MTU leaves for sleeve's headers on
// paths of 1460 bytes. If WireGuard, which adds 110, does not fit, status says so.
const linkOverhead = 84

func (d *doctor) mtu() finding {
	const subject = "mtu"
	name, mtu, err := netdev.DefaultInterface()
	if err != nil {
		return finding{warn, subject, err.Error()}
	}
	if need := daemon.DefaultMTU + linkOverhead; mtu < need {
		return finding{warn, subject, fmt.Sprintf("%s has %d bytes, less than the %d that packets of %d bytes may need with their headers; launch with --mtu %d to avoid fragmentation",
			name, mtu, need, daemon.DefaultMTU, mtu-linkOverhead)}
	}
	return finding{fine, subject, fmt.Sprintf("%s has %d bytes", name, mtu)}
}

// firstRelease is older than every build of weft.
var firstRelease = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func (d *doctor) clock() finding {
	const subject = "clock"
	if d.now.Before(firstRelease) {
		return finding{fail, subject, fmt.Sprintf("it shows %s; set it", d.now.Format(time.DateTime))}
	}
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err == nil && (state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0) {
		return finding{warn, subject, "it is not synchronised, as far as the kernel knows; times in the logs of two hosts may not be comparable"}
	}
	return finding{fine, subject, "synchronised"}
}

// limits examines tables of the kernel that the host shares.
func (d *doctor) limits() finding {
	const subject = "tables of the kernel"
	list, err := netdev.Limits(netdev.ProcSys)
	ports, portsErr := netdev.Ports(netdev.BridgeName)
	if err := errors.Join(err, portsErr); err != nil {
		return finding{warn, subject, err.Error()}
	}
	for _, l := range append(list, ports) {
		if l.NearlyFull() {
			return finding{warn, subject, fmt.Sprintf("%s is nearly full: %d of %d entries; %s", l.Name, l.Used, l.Max, l.Advice)}
		}
	}
	return finding{fine, subject, "have space"}
}

func (d *doctor) routes() finding {
	const subject = "routes"
	if !d.subnet.IsValid() {
		return finding{fine, subject, "no range of addresses to clash with"}
	}
	routes, err := netdev.Overlapping(d.subnet, netdev.BridgeName)
	if err != nil {
		return finding{fail, subject, err.Error()}
	}
	for _, r := range routes {
		if r.Hides(d.subnet) {
			return finding{fail, subject, fmt.Sprintf("the route %s hides addresses of the range %s; launch every router with another --ipalloc-range", r, d.subnet)}
		}
	}
	return finding{fine, subject, fmt.Sprintf("none hides addresses of the range %s", d.subnet)}
}

// routerFindings returns the findings in the report of a router.
func routerFindings(r *api.Report) []finding {
	findings := []finding{{fine, "router", fmt.Sprintf("runs as %s(%s), version %s, and knows %s", r.Router.Name, r.Router.NickName, r.Version, count.Of(len(r.Router.Peers)+r.Omitted["Peers"], "peer", "peers"))}}
	if !r.Ready {
		findings[0] = finding{warn, "router", "is not ready; see its log"}
	}
	for _, w := range r.Warnings {
		v := warn
		if slices.ContainsFunc(r.Kernel.Faults, func(f api.KernelFault) bool { return f.Vital && f.Text == w }) || w == r.Router.Banned {
			v = fail
		}
		findings = append(findings, finding{v, "router", w})
	}
	for _, c := range r.Router.Connections {
		who := c.Address
		if c.Name != "" {
			who += " " + c.Name + "(" + c.NickName + ")"
		}
		switch {
		case c.State == api.StateFailed:
			findings = append(findings, finding{fail, "connection", who + ": " + c.Info})
		case c.State == api.StateAway:
			findings = append(findings, finding{warn, "connection", who + ": " + c.Info})
		case c.State != api.StateEstablished:
			findings = append(findings, finding{warn, "connection", strings.TrimSpace(fmt.Sprintf("%s is %s; check that TCP and UDP port %d are open between the hosts. %s", who, c.State, r.Router.Port, c.Info))})
		case c.Info != "":
			findings = append(findings, finding{warn, "connection", who + ": " + c.Info})
		}
	}
	for _, u := range []*api.IPAM{r.IPAM, r.IPAM6} {
		if u == nil {
			continue
		}
		for _, p := range append(u.PendingAllocates, u.PendingClaims...) {
			findings = append(findings, finding{warn, "addresses", u.Range.String() + ": waiting: " + p + "; see: weft status ipam"})
		}
		for _, o := range u.Owners {
			if !o.Reachable && r.Router.Banned == "" { // else it is this host that is out
				findings = append(findings, finding{warn, "addresses", fmt.Sprintf("%.0f of %s %s to %s(%s), which cannot be reached; if it is gone for good: weft rmpeer %s", o.NumIPs, u.Range, count.Form(o.NumIPs, "belongs", "belong"), o.Peer, o.NickName, o.Peer)})
			}
		}
	}
	if r.DNS != nil {
		findings = append(findings, dnsFindings(r.DNS)...)
	}
	return findings
}

// dnsFindings returns the findings on service discovery.
func dnsFindings(d *api.DNS) (findings []finding) {
	if d.Address == "" {
		var why []string
		for _, l := range d.Listening {
			why = append(why, l.Fault)
		}
		findings = append(findings, finding{warn, "dns", fmt.Sprintf("containers cannot reach the DNS server: %s; give the host an address with weft expose, or see --dns-listen-address", strings.Join(why, ", "))})
	}
	for _, u := range d.Upstream {
		if u.Fault != "" {
			findings = append(findings, finding{warn, "dns", fmt.Sprintf("the host's name server %s is %s", u.Address.Addr(), u.Fault)})
		}
	}
	return findings
}
