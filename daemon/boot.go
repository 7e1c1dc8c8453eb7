package daemon

import (
	"bytes"
	"fmt"
	"os"

	"github.com/weft-net/weft/internal/store"
)

// keyBoot holds the id of the host's boot during which a router ran last.
const keyBoot = "boot"

// bootFile has the id of the host's boot, see random(4).
const bootFile = "/proc/sys/kernel/random/boot_id"

// newBoot notes that a router runs during this boot. If the last router ran during
// another boot, all objects in the kernel are gone, and newBoot calls f first. It does
// not call f if no router has noted its boot before.
func newBoot(st *store.Store, boot []byte, f func() error) error {
	last, err := st.Get(bucketDaemon, []byte(keyBoot))
	if err != nil {
		return fmt.Errorf("read when a router ran last: %w", err)
	}
	if bytes.Equal(last, boot) {
		return nil
	}
	if len(last) > 0 {
		if err := f(); err != nil {
			return err
		}
	}
	if err := st.Apply([]store.Write{{Bucket: bucketDaemon, Key: []byte(keyBoot), Value: boot}}); err != nil {
		return fmt.Errorf("note when the router runs: %w", err)
	}
	return nil
}

// currentBoot returns the id of the host's boot, nothing if the kernel has none.
func currentBoot() []byte {
	b, _ := os.ReadFile(bootFile)
	return bytes.TrimSpace(b)
}
