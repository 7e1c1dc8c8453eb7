package fastpath

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"

	"github.com/weft-net/weft/router/fastpath/kernel"
)

// SetBinding says for which configuration the state in the kernel is valid from now on, made by
// Bind. It is called when passwords change while the router runs.
func (c *Controller) SetBinding(b kernel.Binding) error {
	c.closing.RLock()
	defer c.closing.RUnlock()
	if !c.attached || c.closed {
		return nil
	}
	if err := c.kernel.SetBinding(b); err != nil {
		return fmt.Errorf("keep the state of the fast path over the next restart: %w", err)
	}
	return nil
}

// Bind returns the binding of the state in the kernel to the configuration of a router:
// the seed of its identity, its passwords, and where frames may go in clear text. State is
// kept over a restart if nothing changed but that a password was added, as every peer of
// the earlier process is accepted then. The fingerprints are keyed by the seed, so that
// nobody who reads them can try passwords.
func Bind(seed []byte, passwords []string, s Settings) kernel.Binding {
	fingerprint := func(what string, value any) (f kernel.Fingerprint) {
		h := hmac.New(sha256.New, seed)
		h.Write(fmt.Appendf(nil, "weft fast path %s %q", what, fmt.Sprint(value)))
		copy(f[:], h.Sum(nil))
		return f
	}
	b := kernel.Binding{fingerprint("configuration", []any{s.Port, s.TunnelPort, s.Encrypt, s.Trusted})}
	if len(passwords) == 0 {
		b[1] = fingerprint("without password", "")
	}
	if n := len(b) - 1; len(passwords) > n {
		b[0] = fingerprint("configuration", []any{b[0], passwords[n:]})
		passwords = passwords[:n]
	}
	for i, p := range passwords {
		b[1+i] = fingerprint("password", p)
	}
	return b
}
