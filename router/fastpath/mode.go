package fastpath

import (
	"errors"

	"github.com/weft-net/weft/router/fastpath/plan"
)

// Mode is how the kernel forwards frames of containers. The modes produce the same
// bytes on the wire, so hosts and links with different modes work together.
type Mode uint8

// Modes, in order: each bypasses more of the host's stack.
const (
	Unsupported Mode = iota // not at all: the host lacks something
	Disabled                // not at all: the settings forbid it
	Device                  // across the bridge and the VXLAN device
	Bridged                 // across the bridge, whose rules see the frames, but not the VXLAN device
	Express                 // across neither
)

var modeNames = [...]string{"unsupported", "disabled", "device", "bridged", "express"}

// String is the word for logs.
func (m Mode) String() string { return modeNames[m] }

// Kinds of reasons why a mode is not a better one, for errors.Is. The text of a reason
// says more. Reasons why a link is not up have a kind of package plan.
var (
	ErrUnsupported = errors.New("not supported by this host")
	ErrDisabled    = errors.New("switched off")
	ErrEncryption  = errors.New("frames must be encrypted")
	ErrFiltered    = errors.New("rules see bridged frames")
	ErrUnderlay    = errors.New("not possible on this underlay")
)

// because returns a reason of a kind.
func because(kind error, text string) error { return plan.Because(kind, errors.New(text)) }

// mode is what the host can do, and why not more; nil with Express.
func (c *Controller) mode() (Mode, error) {
	switch {
	case c.unsupported != nil:
		return Unsupported, c.unsupported
	case c.cfg.Off:
		return Disabled, because(ErrDisabled, "switched off by --no-fastdp")
	case !c.attached:
		return Disabled, plan.Because(ErrEncryption, c.tunnelErr)
	case c.expressErr != nil:
		return Device, c.expressErr
	case c.filter.reason() != nil:
		return Bridged, c.filter.reason()
	}
	return Express, nil
}

// express reports whether frames may bypass the bridge, those of other peers that this
// host forwards included.
func (c *Controller) express() bool { return c.expressWith(c.filter) }

// expressWith is express if f filters bridged frames.
func (c *Controller) expressWith(f filter) bool { return c.expressErr == nil && f.reason() == nil }

// linkMode is how frames for a peer whose link is up are forwarded, and why not by
// express.
func (c *Controller) linkMode(l *link) (Mode, error) {
	if err := c.expressLinkErr(l); err != nil {
		return Device, err
	}
	if err := c.filter.reason(); err != nil {
		return Bridged, err
	}
	return Express, nil
}

// expressLinkErr says why frames for a peer need the VXLAN device, nil if they do not:
// this host can put them into VXLAN over IPv4 and Ethernet, by a known interface.
func (c *Controller) expressLinkErr(l *link) error {
	hop := l.hop
	switch {
	case c.expressErr != nil:
		return c.expressErr
	case within(l.Addr(), c.cfg.NoExpressTo):
		return because(ErrDisabled, "switched off by --no-express-to")
	case l.Encrypted():
		return because(ErrEncryption, "frames are encrypted by WireGuard")
	case within(l.Addr(), c.ipsecPrefixes):
		return because(ErrUnderlay, "IPsec of the host applies to packets to the peer")
	case c.badChecksums[hop.Ifindex]:
		return because(ErrUnderlay, "the card towards the peer computes wrong checksums inside VXLAN, so the kernel computes them")
	case hop.Ifindex == 0, !hop.Local.Is4(), !l.Addr().Is4(), !hop.Gateway.Is4(), !c.underlay(hop.Ifindex).Ethernet:
		return because(ErrUnderlay, "the underlay is not IPv4 over Ethernet")
	}
	return nil
}
