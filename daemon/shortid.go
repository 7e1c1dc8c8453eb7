package daemon

import (
	"encoding/binary"
	"fmt"

	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/mesh/topology"
)

// keyShortID holds the peer's short id, two bytes. A router that starts with its last
// short id does not compete for one that another peer has.
const keyShortID = "short-id"

// loadShortID returns the short id of the last run, 0 if there was none.
func loadShortID(st *store.Store) (uint16, error) {
	b, err := st.Get(bucketDaemon, []byte(keyShortID))
	if err != nil {
		return 0, fmt.Errorf("read the short id: %w", err)
	}
	if len(b) != 2 || binary.BigEndian.Uint16(b) > topology.MaxShortID {
		return 0, nil // the mesh finds one
	}
	return binary.BigEndian.Uint16(b), nil
}

func saveShortID(st *store.Store, id uint16) error {
	err := st.Apply([]store.Write{{Bucket: bucketDaemon, Key: []byte(keyShortID), Value: binary.BigEndian.AppendUint16(nil, id)}})
	if err != nil {
		return fmt.Errorf("keep the short id: %w", err)
	}
	return nil
}
