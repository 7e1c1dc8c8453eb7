package cmd

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/weft-net/weft/daemon"
	"github.com/weft-net/weft/dns"
	"github.com/weft-net/weft/internal/hostfile"
	"github.com/weft-net/weft/ipam"
	"github.com/weft-net/weft/router/fastpath/plan"
)

// launchFlags are the flags of weft launch. Most of them are bound to a field of the
// configuration; the others are here as they are written.
type launchFlags struct {
	*daemon.Config // with the defaults; nil: those of daemon.DefaultConfig

	foreground bool
	logFile    string
	httpAddr   string
	envPeers   []string // of WEFT_PEERS
	passwords  passwordFlags
	dnsListen  []string
	tls        proxyTLSFlags
}

// peersVar is the environment variable with peers, blanks between them.
const peersVar = "WEFT_PEERS"

// ParseLaunch sets the fields of c, which has the defaults, as weft launch would:
// by the flags and peers of args, and by environment variables. It checks the
// configuration as a whole.
func ParseLaunch(c *daemon.Config, args []string, lookup func(string) (string, bool)) error {
	f := launchFlags{Config: c}
	fs := pflag.NewFlagSet("launch", pflag.ContinueOnError)
	f.register(fs)
	if err := fs.Parse(args); err != nil {
		if wrong := wrongValue(err); wrong != nil {
			return wrong
		}
		return usagef("launch flags: %w", err)
	}
	if _, err := setFromEnv(fs, lookup); err != nil {
		return err
	}
	peers, _ := lookup(peersVar)
	f.envPeers = strings.Fields(peers)
	_, err := f.config(fs, append(fs.Args(), c.Peers...), c.Socket)
	return err
}

// register defines the flags. Each but --foreground can be given as an
// environment variable too, see envName.
func (f *launchFlags) register(fs *pflag.FlagSet) {
	if f.Config == nil {
		f.Config = daemon.DefaultConfig()
	}
	c := f.Config
	parsedVar(fs, &c.Host, parseHost, "host", "", "address to listen on (all)")
	fs.IntVar(&c.Port, "port", c.Port, "TCP and UDP port; the fast datapath uses the next two UDP ports")
	parsedVar(fs, &c.Name, parsePeerName, "name", "", "name of this peer, like 02:00:00:00:00:01 (derived from its key)")
	fs.StringVar(&c.Mesh.Nickname, "nickname", c.Mesh.Nickname, "name of this peer for people (the hostname)")
	f.passwords.register(fs)
	parsedVar(fs, &c.Fast.Trusted, parseSubnets, "trusted-subnets", "", "comma-separated networks between which the fast datapath does not encrypt")
	parsedVar(fs, &c.AllowPeersFrom, parseSubnets, "allow-peers-from", "", "comma-separated networks of containers in which peers may be (none)")
	notVar(fs, &c.Mesh.Discover, "no-discovery", "connect to the given peers only, not to those they know")
	fs.IntVar(&c.Mesh.ConnLimit, "conn-limit", c.Mesh.ConnLimit, "most sessions, 0 for no limit; other peers are reached over hops")
	fs.BoolVar(&c.Resume, "resume", c.Resume, "connect to the peers of the last run")
	f.registerAddresses(fs)
	parsedVar(fs, &c.MTU, parseMTU, "mtu", strconv.Itoa(c.MTU), "MTU of containers in bytes, or auto: what the default route carries")
	fs.BoolVar(&c.Fast.Off, "no-fastdp", c.Fast.Off, "do not use the fast datapath")
	fs.BoolVar(&c.Fast.NoExpress, "no-express", c.Fast.NoExpress, "disable the express path, which bypasses the bridge")
	parsedVar(fs, &c.Fast.NoExpressTo, parseSubnets, "no-express-to", "", "comma-separated networks: like --no-express, for peers there only")
	encap := func(s string) (e plan.Encaps, err error) { e, c.NoVXLAN, err = parseEncaps(s); return e, err }
	parsedVar(fs, &c.Fast.Encaps, encap, "encap", "auto", "encapsulations of IP packets, best first: auto, or a list of none, ipip, vxlan")
	parsedVar(fs, &c.Fast.EncapsTo, parseEncapsTo, "encap-to", "", "like --encap, for peers in networks only: 10.0.0.0/8=ipip+vxlan,...")
	fs.BoolVar(&c.NoMasqLocal, "no-masq-local", c.NoMasqLocal, "do not masquerade clients whose packets a NAT rule of this host redirects to a container")
	fs.BoolVar(&c.Router.NoTAPOffload, "no-tap-offload", c.Router.NoTAPOffload, "read and write frames of containers one by one, for kernels with faults")
	fs.BoolVar(&c.Router.NoUDPOffload, "no-udp-offload", c.Router.NoUDPOffload, "send and receive packets one by one, for kernels with faults")
	f.registerDNS(fs)
	fs.StringVar(&c.Bridge, "bridge", c.Bridge, "name of the bridge")
	parsedVar(fs, &c.LogLevel, parseLogLevel, "log-level", strings.ToLower(c.LogLevel.String()), "debug, info, warn or error")
	fs.StringVar(&f.httpAddr, "http-addr", "", "path of the control socket, as --socket")
	fs.StringVar(&c.StatusAddr, "status-addr", c.StatusAddr, `address for read-only status and metrics, "" for none`)
	fs.StringSliceVar(&c.StatusHosts, "status-host", c.StatusHosts, "further names by which clients may ask for --status-addr, besides localhost and the address itself")
	fs.StringVar(&c.StateDir, "state-dir", c.StateDir, "folder for the state that must survive a restart")
	fs.StringVar(&f.logFile, "log-file", "", "file for the log of a router in the background (STATE-DIR/weft.log)")
	fs.BoolVar(&f.foreground, "foreground", false, "stay in the foreground, log to standard error")
	fs.Uint8Var(&c.Mesh.ProtocolMin, "protocol-min", c.Mesh.ProtocolMin, "least protocol version to speak")
	fs.Uint8Var(&c.Mesh.ProtocolMax, "protocol-max", c.Mesh.ProtocolMax, "greatest protocol version to speak")
	for _, hidden := range []string{"protocol-min", "protocol-max"} {
		fs.Lookup(hidden).Hidden = true
	}
	registerDocker(fs, &c.Docker, &f.tls)
}

func (f *launchFlags) registerAddresses(fs *pflag.FlagSet) {
	c := f.Config
	givenRange := func(s string) (netip.Prefix, error) {
		c.RangeGiven = true
		return parseRange(s)
	}
	parsedVar(fs, &c.Init, ipam.ParseInit, "ipalloc-init", "consensus", "how the first address ring is made: consensus[=N], seed=NAME,... or observer")
	parsedVar(fs, &c.Range, givenRange, "ipalloc-range", prefixText(c.Range), `range to give addresses from, "" for none`)
	parsedVar(fs, &c.DefaultSubnet, parseRange, "ipalloc-default-subnet", prefixText(c.DefaultSubnet), "subnet for requests that name none (the range)")
	parsedVar(fs, &c.Range6, parseRange, "ipalloc-range6", prefixText(c.Range6), "IPv6 range to give addresses from (none)")
}

func (f *launchFlags) registerDNS(fs *pflag.FlagSet) {
	d := &f.Config.DNS
	fs.BoolVar(&d.Off, "no-dns", d.Off, "answer no DNS queries and register no names on this host")
	parsedVar(fs, &d.Domain, parseDomain, "dns-domain", d.Domain, "domain of the names of containers; the same on all hosts")
	fs.BoolVar(&d.External, "dns-external", d.External, "let dns-add on this host name addresses outside the mesh that it did not attach")
	fs.Var(&parsedFlag[uint32]{to: &d.TTL, parse: parseTTL, text: strconv.Itoa(int(d.TTL)), kind: "int"}, "dns-ttl", "seconds for which clients may cache an answer")
	fs.StringSliceVar(&f.dnsListen, "dns-listen-address", nil,
		"addresses or interfaces, with or without :PORT, to answer DNS queries at ("+dns.DockerBridge+" and the bridge)")
	fs.DurationVar(&d.Timeout, "dns-fallback-timeout", d.Timeout, "time that the host's name servers have to answer")
	fs.StringVar(&d.ResolvConf, "resolv-conf", d.ResolvConf, "file with the host's name servers")
}

// prefixText is the text of a prefix in a flag, "" for none.
func prefixText(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

// envName returns the environment variable that stands for a flag.
func envName(flag string) string {
	return "WEFT_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// setFromEnv gives each flag that was not given the value of its environment
// variable, if that is set, and returns the names of those flags.
func setFromEnv(fs *pflag.FlagSet, lookup func(string) (string, bool)) (set []string, err error) {
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Changed || err != nil || f.Name == "help" || f.Name == "foreground" || f.Name == "socket" {
			return
		}
		// If the command line gives one of two flags that exclude each other, the
		// environment cannot mean the other.
		if other := excludes(f.Name); other != "" && fs.Changed(other) && !slices.Contains(set, other) {
			return
		}
		name := envName(f.Name)
		value, ok := lookup(name)
		if !ok {
			return
		}
		if f.Value.Type() == "bool" && value == "" {
			value = "false"
		}
		if serr := setFlag(fs, f, value); serr != nil {
			if wrong := wrongValue(serr); wrong != nil {
				err = usagef("environment variable %s: %w", name, wrong)
			} else {
				err = usagef("environment variable %s=%q: want a value as for --%s", name, value, f.Name)
			}
			return
		}
		set = append(set, f.Name)
	})
	return set, err
}

// excludes returns the flag that cannot be given together with this one, if there is
// one.
func excludes(flag string) string {
	switch flag {
	case "password":
		return "password-file"
	case "password-file":
		return "password"
	}
	return ""
}

// setFlag sets a flag to the value of an environment variable. A flag that can be
// repeated, and takes no commas, gets one value from each line.
func setFlag(fs *pflag.FlagSet, f *pflag.Flag, value string) error {
	if f.Value.Type() != "stringArray" {
		return fs.Set(f.Name, value)
	}
	for line := range strings.SplitSeq(value, "\n") {
		if err := fs.Set(f.Name, line); err != nil {
			return err
		}
	}
	return nil
}

// makeAbsolute makes the names of files independent of the folder in which launch was
// called: a router in the background works in the root folder.
func (f *launchFlags) makeAbsolute() error {
	files := []*string{&f.passwords.file, &f.tls.files.CA, &f.tls.files.Cert, &f.tls.files.Key}
	for i := range f.passwords.accept {
		files = append(files, &f.passwords.accept[i])
	}
	for _, name := range files {
		if *name == "" {
			continue
		}
		abs, err := filepath.Abs(*name)
		if err != nil {
			return fmt.Errorf("find the file %s: %w", *name, err)
		}
		*name = abs
	}
	return nil
}

// config returns the configuration, complete and checked, of a router that is
// launched with these peers.
func (f *launchFlags) config(fs *pflag.FlagSet, peers []string, socket string) (*daemon.Config, error) {
	c := f.Config
	c.Peers, c.Socket = peers, socket
	for _, step := range []func() error{
		func() error { return f.checkFlags(fs) }, f.readPasswords, f.readListen, f.readTLS, c.Check,
	} {
		if err := step(); err != nil {
			return nil, usageError{err}
		}
	}
	return c, nil
}

// checkFlags checks what only the flags know.
func (f *launchFlags) checkFlags(fs *pflag.FlagSet) error {
	c := f.Config
	switch {
	case c.Resume && len(c.Peers) > 0:
		return errors.New("--resume connects to the peers of the last run, so none can be given")
	case c.Docker.Host != "" && !c.Docker.Driver && c.Docker.Proxy && fs.Changed("proxy"):
		return errors.New("--proxy needs Docker's driver, so it excludes --plugin=false")
	case f.httpAddr != "" && !strings.HasPrefix(f.httpAddr, "/"):
		return fmt.Errorf("--http-addr %q: the control API is on a unix socket only, want its absolute path", f.httpAddr)
	case f.logFile != "" && !strings.HasPrefix(f.logFile, "/"):
		return fmt.Errorf("--log-file %q: want an absolute path", f.logFile)
	}
	if f.httpAddr != "" {
		c.Socket = f.httpAddr
	}
	if len(c.Peers) == 0 {
		c.Peers = f.envPeers
	}
	return nil
}

func (f *launchFlags) readPasswords() (err error) {
	if f.Passwords, err = f.passwords.read(); err != nil {
		return err
	}
	if f.passwords.file != "" || len(f.passwords.accept) > 0 {
		f.ReadPasswords = f.passwords.read
	}
	f.warnOfReaders("password", append([]string{f.passwords.file}, f.passwords.accept...)...)
	return nil
}

// warnOfReaders warns of files with secrets that other users of the host can read.
func (f *launchFlags) warnOfReaders(what string, files ...string) {
	for _, name := range files {
		if name == "" {
			continue
		}
		if others, err := hostfile.OthersRead(name); err == nil && others {
			f.Warnings = append(f.Warnings, fmt.Sprintf("other users of this host can read the %s in %s; take the right away with: chmod 600 %[2]s", what, name))
		}
	}
}

func (f *launchFlags) readListen() error {
	for _, s := range f.dnsListen {
		l, err := dns.ParseListen(s)
		if err != nil {
			return fmt.Errorf("--dns-listen-address: %w", err)
		}
		f.DNS.Listen = append(f.DNS.Listen, l)
	}
	return nil
}

func (f *launchFlags) readTLS() (err error) {
	if f.Docker.Host == "" || !f.Docker.Driver || !f.Docker.Proxy {
		return nil
	}
	f.Docker.ProxyTLS, err = f.tls.config()
	f.warnOfReaders("TLS key", f.Docker.ProxyTLS.Key)
	for _, addr := range f.Docker.ProxyListen {
		if strings.HasPrefix(addr, "tcp://") && f.Docker.ProxyTLS.CA == "" {
			f.Warnings = append(f.Warnings, fmt.Sprintf("every process of this host that reaches %s has the rights of root, as Docker's API gives them; use unix:// or --tlsverify", addr))
		}
	}
	return err
}
