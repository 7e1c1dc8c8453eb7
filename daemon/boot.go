package daemon

import (
	"bytes"
	"fmt"
	"os"

	"github.com/weft-net/weft/internal/store"
)

// keyBoot holds the host's boot during which a router ran last.
const keyBoot = "boot"

// bootFile tells the host's boot, see random(4).
const bootFile = "/proc/sys/kernel/random/boot_id"

// newBoot notes that a router runs during this boot, after it has called f if the
// last one ran during another: what was in the kernel then is gone. A router
// that is the first to note it can not tell.
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

// currentBoot is the host's, nothing if the kernel does not tell.
func currentBoot() []byte {
	b, _ := os.ReadFile(bootFile)
	return bytes.TrimSpace(b)
}
