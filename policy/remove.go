package policy

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netns"

	"github.com/weft-net/weft/policy/rules"
)

// Remove deletes the rules that an engine left in the kernel, in the calling thread's network
// namespace. Call it where policies are no longer enforced.
func Remove() error {
	ns, err := netns.Get()
	if err != nil {
		return fmt.Errorf("remove the rules of policies: open the thread's network namespace: %w", err)
	}
	return errors.Join((&nft{ns: ns}).replace(&rules.Rules{}, unhooked), ns.Close())
}
