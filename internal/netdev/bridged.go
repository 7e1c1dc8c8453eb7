package netdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
)

// Shown says whether IP rules of a family, and those of arptables, see the frames that a
// bridge forwards.
type Shown struct {
	IPv4, IPv6, ARP Cause
}

// Cause is why rules see bridged frames. The zero value is that they do not.
type Cause string

// ShownBy reads whether IP rules see the frames that a bridge of the calling thread's
// namespace forwards. Without the module br_netfilter they do not. With it they do if the
// sysctl of the namespace says so, or the bridge's own flag.
func ShownBy(bridge string) (s Shown, err error) {
	links, err := Dump(dumpLinks)
	if err != nil {
		return s, fmt.Errorf("read the flags of bridge %s: %w", bridge, err)
	}
	var own BridgeFlags
	for _, l := range links {
		if l.Name == bridge {
			own = l.Bridge
		}
	}
	return Shown{
		shownBy("iptables", bridge, own.Netfilter4), shownBy("ip6tables", bridge, own.Netfilter6), shownBy("arptables", bridge, own.NetfilterARP),
	}, nil
}

func shownBy(key, bridge string, own bool) Cause {
	value, err := os.ReadFile("/proc/sys/net/bridge/bridge-nf-call-" + key)
	switch {
	case err != nil:
		return "" // there is no br_netfilter
	case own:
		return Cause("flag nf_call_" + key + " of bridge " + bridge + " is set")
	case strings.TrimSpace(string(value)) != "0":
		return Cause("net.bridge.bridge-nf-call-" + key + " is set")
	}
	return ""
}

// ShowBridged makes IP rules see the frames that a bridge of the calling thread's namespace
// forwards, by the bridge's own flags. It loads the module br_netfilter if the kernel lacks
// it. Other bridges of the host stay as they are. A bridge that does not exist is no error:
// Bridge.Filtered is for whoever makes it.
func ShowBridged(bridge string) error {
	const probe = "/proc/sys/net/bridge/bridge-nf-call-iptables"
	if _, err := os.Stat(probe); errors.Is(err, fs.ErrNotExist) {
		// If the module cannot be loaded, the error below says so.
		_ = exec.Command("modprobe", "br_netfilter").Run()
	}
	if _, err := os.Stat(probe); err != nil {
		return fmt.Errorf("show the frames of bridge %s to IP rules: load the module br_netfilter (modprobe br_netfilter): %w", bridge, err)
	}
	h, err := here()
	if err != nil {
		return err
	}
	defer h.Close()
	l, ok, err := h.link(bridge)
	if err != nil || !ok {
		return err
	}
	if err := setFlags(l, netfilterFlags); err != nil {
		return fmt.Errorf("show the frames of bridge %s to IP rules: set its flags: %w", bridge, err)
	}
	return nil
}
