package cmd

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/weft-net/weft/daemon"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/session"
)

// Defaults of weft launch that are not the daemon's.
const (
	defaultPort      = 6783
	defaultRange     = "10.32.0.0/12"
	defaultConnLimit = 200
	maxPasswordFile  = 64 << 10 // bytes
	maxNickname      = 64       // bytes
)

// launchFlags are the flags of weft launch as they are written.
type launchFlags struct {
	foreground bool
	logFile    string
	envPeers   []string // of WEFT_PEERS

	host, name, nickname       string
	port                       int
	password, passwordFile     string
	acceptPasswordFiles        []string
	trustedSubnets             string
	noDiscovery, resume        bool
	noFastdp, noExpress        bool
	noMasqLocal                bool
	noExpressTo                string
	noTAPOffload, noUDPOffload bool
	connLimit                  int
	allocInit, allocRange      string
	defaultSubnet, allocRange6 string
	mtu                        int
	dns                        dnsFlags
	bridge, logLevel           string
	httpAddr, statusAddr       string
	stateDir                   string
	protocolMin, protocolMax   int
	docker                     dockerFlags
}

// peersVar is the environment variable with peers, blanks between them.
const peersVar = "WEFT_PEERS"

// register defines the flags. Each but --foreground can be given as an
// environment variable too, see envName.
func (f *launchFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.host, "host", "", "address to listen on (all)")
	fs.IntVar(&f.port, "port", defaultPort, "TCP and UDP port; the fast datapath uses the next one")
	fs.StringVar(&f.name, "name", "", "name of this peer, like 02:00:00:00:00:01 (made from its key)")
	fs.StringVar(&f.nickname, "nickname", "", "name of this peer for people (the hostname)")
	fs.StringVar(&f.password, "password", "", "password of the mesh; better in WEFT_PASSWORD or a file, which other users do not see; further lines are also accepted from others")
	fs.StringVar(&f.passwordFile, "password-file", "", "file with the password; further lines are also accepted from others")
	fs.StringArrayVar(&f.acceptPasswordFiles, "accept-password-file", nil, "file with passwords that are accepted but not offered (repeatable)")
	fs.StringVar(&f.trustedSubnets, "trusted-subnets", "", "comma-separated networks between which the fast datapath need not encrypt")
	fs.BoolVar(&f.noDiscovery, "no-discovery", false, "connect to the given peers only, not to those they know")
	fs.IntVar(&f.connLimit, "conn-limit", defaultConnLimit, "most sessions, 0 for no limit; other peers are reached over hops")
	fs.BoolVar(&f.resume, "resume", false, "connect to the peers of the last run")
	fs.StringVar(&f.allocInit, "ipalloc-init", "consensus", "how the first address ring is made: consensus[=N], seed=NAME,... or observer")
	fs.StringVar(&f.allocRange, "ipalloc-range", defaultRange, `range to give addresses from, "" for none`)
	fs.StringVar(&f.defaultSubnet, "ipalloc-default-subnet", "", "subnet for those who name none (the range)")
	fs.StringVar(&f.allocRange6, "ipalloc-range6", "", "IPv6 range to give addresses from (none)")
	fs.IntVar(&f.mtu, "mtu", daemon.DefaultMTU, "MTU of containers, in bytes")
	fs.BoolVar(&f.noFastdp, "no-fastdp", false, "do not use the fast datapath")
	fs.BoolVar(&f.noExpress, "no-express", false, "have frames of the fast datapath cross the bridge and the VXLAN device")
	fs.StringVar(&f.noExpressTo, "no-express-to", "", "comma-separated networks: like --no-express, for peers there only")
	fs.BoolVar(&f.noMasqLocal, "no-masq-local", false, "let containers see the address of clients from outside whose packets this host translates to them")
	fs.BoolVar(&f.noTAPOffload, "no-tap-offload", false, "take and give frames of containers one by one, for kernels with faults")
	fs.BoolVar(&f.noUDPOffload, "no-udp-offload", false, "send and receive packets one by one, for kernels with faults")
	f.dns.register(fs)
	fs.StringVar(&f.bridge, "bridge", netdev.BridgeName, "name of the bridge")
	fs.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	fs.StringVar(&f.httpAddr, "http-addr", "", "path of the control socket, as --socket")
	fs.StringVar(&f.statusAddr, "status-addr", api.DefaultStatusAddr, `address for read-only status and metrics, "" for none`)
	fs.StringVar(&f.stateDir, "state-dir", daemon.DefaultStateDir, "folder for what must survive a restart")
	fs.StringVar(&f.logFile, "log-file", "", "file for the log of a router in the background (STATE-DIR/weft.log)")
	fs.BoolVar(&f.foreground, "foreground", false, "stay in the foreground, log to standard error")
	fs.IntVar(&f.protocolMin, "protocol-min", 0, "least protocol version to speak")
	fs.IntVar(&f.protocolMax, "protocol-max", 0, "greatest protocol version to speak")
	f.docker.register(fs)
	for _, hidden := range []string{"protocol-min", "protocol-max"} {
		fs.Lookup(hidden).Hidden = true
	}
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
		// Where the command line says one of two that exclude each other, the
		// environment can not mean the other.
		if other := excludes(f.Name); other != "" && fs.Changed(other) && !slices.Contains(set, other) {
			return
		}
		value, ok := lookup(envName(f.Name))
		if !ok {
			return
		}
		if f.Value.Type() == "bool" && value == "" {
			value = "false"
		}
		if serr := setFlag(fs, f, value); serr != nil {
			err = usagef("environment variable %s=%q: want a value as for --%s", envName(f.Name), value, f.Name)
			return
		}
		set = append(set, f.Name)
	})
	return set, err
}

// excludes returns the flag that can not be given beside this one, if there is one.
func excludes(flag string) string {
	switch flag {
	case "password":
		return "password-file"
	case "password-file":
		return "password"
	}
	return ""
}

// setFlag sets a flag to the value of an environment variable: one line for each
// value of a flag that can be repeated, but for those that take commas.
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

// makeAbsolute makes the names of files independent of where launch was called:
// a router has the root folder as its own.
func (f *launchFlags) makeAbsolute() error {
	names := []*string{&f.passwordFile, &f.docker.tlsCA, &f.docker.tlsCert, &f.docker.tlsKey}
	for i := range f.acceptPasswordFiles {
		names = append(names, &f.acceptPasswordFiles[i])
	}
	for _, name := range names {
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

// config checks everything and makes the configuration of a router.
func (f *launchFlags) config(fs *pflag.FlagSet, peers []string, socket string) (*daemon.Config, error) {
	c := &daemon.Config{
		Peers: peers, Resume: f.resume, Port: f.port, NoDiscovery: f.noDiscovery, ConnLimit: f.connLimit,
		MTU: f.mtu, NoFastdp: f.noFastdp, NoExpress: f.noExpress, NoMasqLocal: f.noMasqLocal, NoTAPOffload: f.noTAPOffload, NoUDPOffload: f.noUDPOffload, Bridge: f.bridge, StateDir: f.stateDir, Socket: socket,
		StatusAddr: f.statusAddr, RangeGiven: fs.Changed("ipalloc-range"),
		ProtocolMin: f.protocolMin, ProtocolMax: f.protocolMax,
	}
	for _, step := range []func(*daemon.Config) error{
		f.checkPeers, f.checkWho, f.checkNumbers, f.checkPasswords, f.checkRanges, f.checkInit, f.checkPlaces, f.dns.check, f.docker.check,
	} {
		if err := step(c); err != nil {
			return nil, usageError{err}
		}
	}
	return c, nil
}

func (f *launchFlags) checkPeers(c *daemon.Config) error {
	if c.Resume && len(c.Peers) > 0 {
		return errors.New("--resume connects to the peers of the last run, so none can be given")
	}
	if len(c.Peers) == 0 {
		c.Peers = f.envPeers
	}
	for _, p := range c.Peers {
		if err := api.CheckTarget(p); err != nil {
			return err
		}
	}
	return nil
}

func (f *launchFlags) checkWho(c *daemon.Config) (err error) {
	if f.host != "" {
		if c.Host, err = netip.ParseAddr(f.host); err != nil {
			return fmt.Errorf("--host %q: want an IP address of this host", f.host)
		}
	}
	if f.name != "" {
		if c.Name, err = peer.ParseName(f.name); err != nil {
			return fmt.Errorf("--name: %w", err)
		}
	}
	c.NickName = f.nickname
	if c.NickName == "" {
		if c.NickName, err = os.Hostname(); err != nil {
			return fmt.Errorf("find the hostname, for --nickname: %w", err)
		}
	}
	if len(c.NickName) > maxNickname || strings.ContainsFunc(c.NickName, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '\ufffd' }) {
		return fmt.Errorf("--nickname %q: want up to %d characters without blanks", c.NickName, maxNickname)
	}
	return nil
}

func (f *launchFlags) checkNumbers(*daemon.Config) error {
	switch {
	case f.port < 1 || f.port > 65533:
		return fmt.Errorf("--port %d: want 1 to 65533, as the next two are used too", f.port)
	case f.connLimit < 0:
		return fmt.Errorf("--conn-limit %d: want a number of sessions, or 0 for no limit", f.connLimit)
	case f.mtu < 576 || f.mtu > 65000:
		return fmt.Errorf("--mtu %d: want 576 to 65000 bytes", f.mtu)
	case f.mtu < 1280 && f.allocRange6 != "":
		return fmt.Errorf("--mtu %d: IPv6 needs at least 1280 bytes", f.mtu)
	case f.protocolMin < 0 || f.protocolMax < 0 || (f.protocolMax > 0 && f.protocolMax < f.protocolMin):
		return fmt.Errorf("--protocol-min %d --protocol-max %d: no version lies between", f.protocolMin, f.protocolMax)
	}
	return nil
}

func (f *launchFlags) checkPasswords(c *daemon.Config) error {
	if f.password != "" && f.passwordFile != "" {
		return errors.New("give the password by --password or by --password-file, not both")
	}
	c.Passwords = passwordLines(f.password)
	if f.password != "" && len(c.Passwords) == 0 {
		return errors.New("--password: it has empty lines only")
	}
	files := f.acceptPasswordFiles
	if f.passwordFile != "" {
		files = append([]string{f.passwordFile}, files...)
	} else if len(files) > 0 && f.password == "" {
		return errors.New("--accept-password-file: a password to offer is missing, --password or --password-file")
	}
	for _, name := range files {
		lines, err := readPasswords(name)
		if err != nil {
			return err
		}
		for _, p := range lines {
			if !slices.Contains(c.Passwords, p) {
				c.Passwords = append(c.Passwords, p)
			}
		}
	}
	if slices.ContainsFunc(c.Passwords, func(p string) bool { return len(p) < session.MinPassword }) {
		return fmt.Errorf("a password has less than %d characters; choose a longer one", session.MinPassword)
	}
	return nil
}

// readPasswords returns the lines of a file that are not empty, at least one.
// Blanks at either end are part of a password.
func readPasswords(name string) ([]string, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("read passwords: %w", err)
	}
	if info.Size() > maxPasswordFile {
		return nil, fmt.Errorf("read passwords: %s has %d bytes, more than %d", name, info.Size(), maxPasswordFile)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read passwords: %w", err)
	}
	lines := passwordLines(string(b))
	if len(lines) == 0 {
		return nil, fmt.Errorf("read passwords: %s has none", name)
	}
	return lines, nil
}

// passwordLines returns the lines of a text that are not empty.
func passwordLines(text string) (lines []string) {
	for line := range strings.SplitSeq(text, "\n") {
		if line = strings.TrimSuffix(line, "\r"); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

func (f *launchFlags) checkRanges(c *daemon.Config) (err error) {
	if c.NoExpressTo, err = parseSubnets("--no-express-to", f.noExpressTo); err != nil {
		return err
	}
	if c.TrustedSubnets, err = parseSubnets("--trusted-subnets", f.trustedSubnets); err != nil {
		return err
	}
	if f.allocRange != "" {
		if c.Range, err = parseRange("--ipalloc-range", f.allocRange); err != nil {
			return err
		}
		if !c.Range.Addr().Is4() {
			return fmt.Errorf("--ipalloc-range %s: want an IPv4 range; the IPv6 one is --ipalloc-range6", c.Range)
		}
		c.DefaultSubnet = c.Range
	}
	if f.defaultSubnet != "" {
		if !c.Range.IsValid() {
			return errors.New("--ipalloc-default-subnet: there is no --ipalloc-range for it to be of")
		}
		if c.DefaultSubnet, err = parseRange("--ipalloc-default-subnet", f.defaultSubnet); err != nil {
			return err
		}
		if !c.DefaultSubnet.Overlaps(c.Range) {
			return fmt.Errorf("--ipalloc-default-subnet %s: it has no address of the range %s", c.DefaultSubnet, c.Range)
		}
	}
	if f.allocRange6 != "" {
		if c.Range6, err = parseRange("--ipalloc-range6", f.allocRange6); err != nil {
			return err
		}
		if !c.Range6.Addr().Is6() {
			return fmt.Errorf("--ipalloc-range6 %s: want an IPv6 range", c.Range6)
		}
	}
	return nil
}

func parseSubnets(flag, list string) ([]netip.Prefix, error) {
	var ps []netip.Prefix
	for s := range strings.SplitSeq(list, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%s %q: want networks like 192.168.0.0/16, with commas between", flag, s)
		}
		ps = append(ps, p.Masked())
	}
	return ps, nil
}

// parseRange reads a range that addresses are given from.
func parseRange(flag, s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%s %q: want a range like %s", flag, s, defaultRange)
	}
	if m := p.Masked(); m != p {
		return netip.Prefix{}, fmt.Errorf("%s %s: bits are set beyond /%d; did you mean %s?", flag, p, p.Bits(), m)
	}
	if p.Addr().BitLen()-p.Bits() < 2 {
		return netip.Prefix{}, fmt.Errorf("%s %s: too small; want at least 4 addresses", flag, p)
	}
	return p, nil
}

func (f *launchFlags) checkInit(c *daemon.Config) error {
	kind, value, has := strings.Cut(f.allocInit, "=")
	c.IPAllocInit.Kind = daemon.InitKind(kind)
	switch c.IPAllocInit.Kind {
	case daemon.InitConsensus:
		if has {
			n, err := strconv.Atoi(value)
			if err != nil || n < 1 {
				return fmt.Errorf("--ipalloc-init %s: want the number of peers at the beginning, as consensus=3", f.allocInit)
			}
			c.IPAllocInit.Quorum = n
		}
		return nil
	case daemon.InitSeed:
		for s := range strings.SplitSeq(value, ",") {
			n, err := peer.ParseName(s)
			if err != nil {
				return fmt.Errorf("--ipalloc-init %s: %w", f.allocInit, err)
			}
			if slices.Contains(c.IPAllocInit.Seeds, n) {
				return fmt.Errorf("--ipalloc-init %s: peer %s is named twice", f.allocInit, n)
			}
			c.IPAllocInit.Seeds = append(c.IPAllocInit.Seeds, n)
		}
		return nil
	case daemon.InitObserver:
		if !has {
			return nil
		}
	}
	return fmt.Errorf("--ipalloc-init %q: want consensus[=N], seed=NAME,... or observer", f.allocInit)
}

// maxSocketPath: sun_path of struct sockaddr_un has 108 bytes, the last one
// zero.
const maxSocketPath = 107

var interfaceName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}$`)

func (f *launchFlags) checkPlaces(c *daemon.Config) error {
	switch f.logLevel {
	case "debug":
		c.LogLevel = slog.LevelDebug
	case "info":
		c.LogLevel = slog.LevelInfo
	case "warn", "warning":
		c.LogLevel = slog.LevelWarn
	case "error":
		c.LogLevel = slog.LevelError
	default:
		return fmt.Errorf("--log-level %q: want debug, info, warn or error", f.logLevel)
	}
	if !interfaceName.MatchString(f.bridge) {
		return fmt.Errorf("--bridge %q: want up to 15 letters, digits, dots, hyphens and underscores", f.bridge)
	}
	if strings.HasPrefix(f.bridge, netdev.HostPrefix) {
		return fmt.Errorf("--bridge %s: names that begin with %s are for the bridge's ports", f.bridge, netdev.HostPrefix)
	}
	if f.httpAddr != "" {
		if !strings.HasPrefix(f.httpAddr, "/") {
			return fmt.Errorf("--http-addr %q: the control API is on a unix socket only, want its absolute path", f.httpAddr)
		}
		c.Socket = f.httpAddr
	}
	if !strings.HasPrefix(c.Socket, "/") || len(c.Socket) > maxSocketPath {
		return fmt.Errorf("--socket %q: want an absolute path of up to %d characters", c.Socket, maxSocketPath)
	}
	if !strings.HasPrefix(c.StateDir, "/") {
		return fmt.Errorf("--state-dir %q: want an absolute path", c.StateDir)
	}
	if f.logFile != "" && !strings.HasPrefix(f.logFile, "/") {
		return fmt.Errorf("--log-file %q: want an absolute path", f.logFile)
	}
	if f.statusAddr != "" {
		host, port, err := net.SplitHostPort(f.statusAddr)
		n, perr := strconv.Atoi(port)
		if _, aerr := netip.ParseAddr(host); err != nil || perr != nil || n < 0 || n > 65535 || (host != "" && aerr != nil) {
			return fmt.Errorf("--status-addr %q: want ADDRESS:PORT, or \"\" for none", f.statusAddr)
		}
	}
	return nil
}
