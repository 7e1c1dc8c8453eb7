package cmd

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/weft-net/weft/daemon"
	"github.com/weft-net/weft/dns/names"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/fastpath"
	"github.com/weft-net/weft/router/fastpath/plan"
)

// parsedFlag is a flag whose text is read by a function. The function's errors name
// the value, best at their beginning, as in: "x": want a number.
type parsedFlag[T any] struct {
	to    *T
	parse func(string) (T, error)
	text  string // as given, or the default
	kind  string // the type that help shows
}

var _ pflag.Value = (*parsedFlag[int])(nil)

// Set implements pflag.Value.
func (f *parsedFlag[T]) Set(s string) error {
	v, err := f.parse(s)
	if err != nil {
		return valueError{err}
	}
	*f.to, f.text = v, s
	return nil
}

// String implements pflag.Value.
func (f *parsedFlag[T]) String() string { return f.text }

// Type implements pflag.Value.
func (f *parsedFlag[T]) Type() string { return f.kind }

// parsedVar defines a flag that parse reads into to. Text is the default for help;
// to has it already.
func parsedVar[T any](fs *pflag.FlagSet, to *T, parse func(string) (T, error), name, text, usage string) {
	fs.Var(&parsedFlag[T]{to: to, parse: parse, text: text, kind: "string"}, name, usage)
}

// notVar defines a flag that is the opposite of a setting.
func notVar(fs *pflag.FlagSet, to *bool, name, usage string) {
	parse := func(s string) (bool, error) { on, err := strconv.ParseBool(s); return !on, err }
	fs.Var(&parsedFlag[bool]{to: to, parse: parse, text: strconv.FormatBool(!*to), kind: "bool"}, name, usage)
	fs.Lookup(name).NoOptDefVal = "true"
}

// valueError is an error of a parsedFlag.
type valueError struct{ error }

func (e valueError) Unwrap() error { return e.error }

// flagError returns the error of a command line in the words of weft.
func flagError(c *cobra.Command, err error) error {
	if err := wrongValue(err); err != nil {
		return err
	}
	// What strconv says of a number adds nothing to the flag's name.
	text, _, _ := strings.Cut(err.Error(), ": strconv.")
	return usagef("%s: %s; see: %s --help", c.CommandPath(), text, c.CommandPath())
}

// wrongValue returns the error for a flag that refused its value, with the flag's
// name, and nil for any other error.
func wrongValue(err error) error {
	var invalid *pflag.InvalidValueError
	var cause valueError
	if !errors.As(err, &invalid) || !errors.As(err, &cause) || errors.Is(err, strconv.ErrSyntax) {
		return nil
	}
	name, value := invalid.GetFlag().Name, invalid.GetValue()
	if text := cause.Error(); strings.HasPrefix(text, value) || strings.HasPrefix(text, strconv.Quote(value)) {
		return usagef("--%s %w", name, cause)
	}
	return usagef("--%s: %w", name, cause)
}

func parseHost(s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, fmt.Errorf("%q: want an IP address of this host", s)
	}
	return a, nil
}

func parsePeerName(s string) (peer.Name, error) {
	if s == "" {
		return peer.Name{}, nil
	}
	return peer.ParseName(s)
}

// parseSubnets reads networks with commas between them.
func parseSubnets(list string) (ps []netip.Prefix, err error) {
	for s := range strings.SplitSeq(list, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%q: want networks like 192.168.0.0/16, with commas between", s)
		}
		ps = append(ps, p.Masked())
	}
	return ps, nil
}

// parseMTU reads a number of bytes, or auto.
func parseMTU(s string) (int, error) {
	if s == "auto" {
		return daemon.AutoMTU, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n == daemon.AutoMTU {
		return 0, fmt.Errorf("%q: want a number of bytes, or auto", s)
	}
	return n, nil
}

// parseEncaps reads encapsulations, and reports whether vxlan is not among them.
func parseEncaps(s string) (list plan.Encaps, noVXLAN bool, err error) {
	if s == "auto" {
		return plan.Auto, false, nil
	}
	all := []plan.Encap{plan.None, plan.IPIP, plan.VXLAN}
	var seen []plan.Encap
	for word := range strings.SplitSeq(s, ",") {
		i := slices.IndexFunc(all, func(e plan.Encap) bool { return e.String() == strings.TrimSpace(word) })
		if i < 0 || slices.Contains(seen, all[i]) {
			return list, false, fmt.Errorf("%q: want auto, or a list of none, ipip and vxlan, each once", s)
		}
		seen = append(seen, all[i])
	}
	n := slices.Index(seen, plan.VXLAN)
	if n >= 0 && n < len(seen)-1 {
		return list, false, fmt.Errorf("%q: nothing is used that comes after vxlan", s)
	}
	if n < 0 {
		n, noVXLAN = len(seen), true
	}
	copy(list[:], seen[:n])
	return list, noVXLAN, nil
}

// parseEncapsTo reads encapsulations for peers in networks.
func parseEncapsTo(s string) (list []fastpath.EncapsTo, err error) {
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		network, encaps, ok := strings.Cut(part, "=")
		p, err := netip.ParsePrefix(network)
		if !ok || err != nil || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%q: want networks with encapsulations, like 192.168.0.0/16=ipip+vxlan", part)
		}
		e, noVXLAN, err := parseEncaps(strings.ReplaceAll(encaps, "+", ","))
		if err != nil {
			return nil, fmt.Errorf("%q: want auto, or none, ipip and vxlan with + between, vxlan last", part)
		}
		list = append(list, fastpath.EncapsTo{Peers: p.Masked(), Encaps: e, NoVXLAN: noVXLAN})
	}
	return list, nil
}

// parseRange reads a range that addresses are given from, "" for none.
func parseRange(s string) (netip.Prefix, error) {
	if s == "" {
		return netip.Prefix{}, nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q: want a range like %s", s, daemon.DefaultRange)
	}
	return p, daemon.CheckRange(p)
}

func parseLogLevel(s string) (slog.Level, error) {
	switch s {
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn", "warning":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("%q: want debug, info, warn or error", s)
}

func parseDomain(s string) (string, error) {
	return names.Canonical(strings.TrimPrefix(s, "."))
}

func parseTTL(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("%q: want seconds, 0 to %d", s, 1<<31-1)
	}
	return uint32(n), nil
}

func parsePattern(s string) (*regexp.Regexp, error) {
	re, err := regexp.Compile(s)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", s, err)
	}
	return re, nil
}
