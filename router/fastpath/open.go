package fastpath

import (
	"fmt"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/fastpath/plan"
)

// open opens the tunnel and the kernel's part, and takes over what an earlier router
// left. It returns an error only if the router cannot work without the fast path
// either.
func (c *Controller) open() error {
	o := kernel.Options{
		PinDir: c.cfg.PinDir, Bridge: c.cfg.Bridge, Port: netdev.PortName, PortPeer: netdev.PortPeerName, TAP: c.cfg.TAP,
		VXLAN: netdev.VXLANName, VXLANPort: c.cfg.Port, MTU: c.cfg.MTU, Sysctls: c.cfg.Sysctls, Log: c.log,
		Binding: c.cfg.Binding, Guard: c.cfg.Guard,
	}
	c.openTunnel()
	if c.cfg.Encrypt && len(c.cfg.Trusted) == 0 && c.tunnel == nil {
		return c.leaveAllToSleeve(o)
	}
	if _, err := c.guard(); err != nil {
		// Without the rules, containers could send frames as this host.
		err = fmt.Errorf("keep containers from UDP %d: %w", c.cfg.Port, err)
		c.unsupported = plan.Because(ErrUnsupported, err)
		c.log.Warn("no fast path", "err", err)
		if err := c.sys.RemoveKernel(o); err != nil {
			return err
		}
		c.removeTunnel()
		c.removeOwnRoutes()
		return nil
	}
	if c.openKernel(o); !c.attached {
		return nil
	}
	if err := c.adopt(); err != nil {
		return fmt.Errorf("take over the fast path of an earlier router: %w", err)
	}
	if !c.kernel.Adopted() {
		if err := c.emptyTunnel(); err != nil {
			return fmt.Errorf("end the tunnels of an earlier router: %w", err)
		}
	}
	c.removeTunnel()
	return c.keep()
}

// leaveAllToSleeve removes what an earlier router left, because no link can use the
// fast path. Nothing may leave in clear text any more. Without the programs, frames
// save a twentieth of an idle round trip.
func (c *Controller) leaveAllToSleeve(o kernel.Options) error {
	if err := c.sys.RemoveKernel(o); err != nil {
		return err
	}
	c.removeTunnel()
	c.removeOwnRoutes()
	if _, err := c.watch.Guard(netdev.Guarded{}); err != nil {
		c.log.Warn("cannot remove the rules that guarded the fast path", "err", err)
	}
	return nil
}

// openKernel opens the kernel's part, or records why there is none and why frames
// must cross the bridge.
func (c *Controller) openKernel(o kernel.Options) {
	if c.cfg.NoExpress {
		c.expressErr = because(ErrDisabled, "switched off by --no-express")
	}
	c.filter = c.readFilter()
	var err error
	if c.ipsecPrefixes, err = c.watch.IPsecPrefixes(); err != nil {
		c.expressErr = plan.Because(ErrUnderlay, err)
		c.log.Warn("no express mode", "err", err)
	}
	o.Express = c.express()
	k, err := c.sys.OpenKernel(o)
	if err != nil {
		c.unsupported = plan.Because(ErrUnsupported, err)
		c.log.Warn("no fast path", "err", err)
		return
	}
	c.kernel, c.attached = k, true
	if err := k.Fast(); err != nil {
		c.unsupported = plan.Because(ErrUnsupported, err)
		c.log.Warn("no fast path", "err", err)
	} else if err := k.Express(); err != nil {
		c.expressErr = plan.Because(ErrUnsupported, err)
		c.log.Warn("no express mode", "err", err)
	}
}
