package records_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/records"
)

// A use of a Map brings a name, a function that parses payloads and an index. Here hosts
// announce how many containers they run, and everybody knows the sum.
func TestAnotherUseNeedsNoProtocolCode(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	keys := map[peer.Name]peer.Key{}
	open := func(n byte, sum *int) *records.Map[byte] {
		id := peer.Cheap{ID: peer.Key{n}}
		keys[peer.Name{2, n}] = id.ID
		return records.New(records.Config[byte]{
			Use: "containers", Self: peer.Name{2, n}, Signer: id, Verifier: id, Start: start,
			Decode: func(_ uint8, b []byte) (byte, error) {
				if len(b) != 1 {
					return 0, fmt.Errorf("number of containers: %d bytes, want 1", len(b))
				}
				return b[0], nil
			},
			Changed: func(_ peer.Name, _ uint8, old, now byte) { *sum += int(now) - int(old) },
		})
	}
	var sumA, sumB int
	a, b := open(1, &sumA), open(2, &sumB)
	b.SetOwners(keys)
	for _, containers := range []byte{3, 5} {
		deltas, err := a.Set(map[uint8][]byte{0: {containers}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Merge(peer.Name{2, 1}, deltas[0]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Set(map[uint8][]byte{0: {2}}); err != nil {
		t.Fatal(err)
	}
	if sumA != 5 || sumB != 7 {
		t.Errorf("host 1 counts %d containers and host 2 counts %d, want 5 and 7", sumA, sumB)
	}
}
