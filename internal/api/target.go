package api

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

// SplitTarget reads a target, the address of a peer as the user writes it:
// HOST, HOST:PORT, IPv6 or [IPv6]:PORT, where HOST is a name or an IPv4
// address. Port is 0 if none is given.
func SplitTarget(s string) (host string, port int, err error) {
	bad := func(why string) (string, int, error) {
		return "", 0, fmt.Errorf("peer %q: %s", s, why)
	}
	const form = "want HOST, HOST:PORT or [IPv6]:PORT"
	if a, err := netip.ParseAddr(s); err == nil {
		return checkTargetAddr(s, a, 0)
	}
	host = s
	if rest, ok := strings.CutPrefix(s, "["); ok {
		inner, tail, ok := strings.Cut(rest, "]")
		a, err := netip.ParseAddr(inner)
		if !ok || err != nil || !a.Is6() {
			return bad(form)
		}
		if tail == "" {
			return checkTargetAddr(s, a, 0)
		}
		if port, ok = parsePort(strings.TrimPrefix(tail, ":")); !ok || tail[0] != ':' {
			return bad(form)
		}
		return checkTargetAddr(s, a, port)
	}
	if h, p, ok := strings.Cut(s, ":"); ok {
		if port, ok = parsePort(p); !ok {
			return bad(form + " with a port from 1 to 65535")
		}
		host = h
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return checkTargetAddr(s, a, port)
	}
	if len(host) > 253 || !domainName.MatchString(host) || onlyDigits.MatchString(host) {
		return bad(form)
	}
	return host, port, nil
}

var (
	domainName = regexp.MustCompile(`^([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?$`)
	// onlyDigits is what a mistyped IPv4 address looks like; the last label of
	// a domain name is never a number (RFC 3696, 2).
	onlyDigits = regexp.MustCompile(`(^|\.)[0-9]+\.?$`)
)

func checkTargetAddr(s string, a netip.Addr, port int) (string, int, error) {
	if a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return "", 0, fmt.Errorf("peer %q: no host has that address", s)
	}
	return a.String(), port, nil
}

func parsePort(s string) (int, bool) {
	if len(s) > 5 || s == "" || s[0] < '1' || s[0] > '9' {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	return n, err == nil && n <= 65535
}

// CheckTarget returns an error if s is no target.
func CheckTarget(s string) error {
	_, _, err := SplitTarget(s)
	return err
}
