package gossip

import (
	"encoding/binary"
	"hash/fnv"
	"iter"
	"slices"

	"github.com/weft-net/weft/mesh/peer"
)

// The functions of this file are for channels whose deltas are concatenated records,
// each of which belongs to a peer.

// Pack concatenates records into deltas of at most MaxDelta bytes.
func Pack(records iter.Seq[[]byte]) (deltas [][]byte) {
	var d []byte
	for r := range records {
		if len(d)+len(r) > MaxDelta {
			deltas = append(deltas, d)
			d = nil
		}
		d = append(d, r...)
	}
	if d != nil {
		deltas = append(deltas, d)
	}
	return deltas
}

// JoinRecords implements Channel.Join: of two records with one key it keeps the newer
// one. next returns the key and the length of the first record of b.
func JoinRecords[K comparable](older, newer []byte, next func(b []byte) (K, int, error)) []byte {
	replaced := make(map[K]bool)
	for b := newer; len(b) > 0; {
		k, n, err := next(b)
		if err != nil {
			return nil
		}
		replaced[k] = true
		b = b[n:]
	}
	for i := 0; i < len(older); {
		k, n, err := next(older[i:])
		if err != nil {
			return nil
		}
		if replaced[k] {
			older = slices.Concat(older[:i], older[i+n:])
			continue
		}
		i += n
	}
	if len(older)+len(newer) > MaxDelta {
		return nil
	}
	return append(older, newer...)
}

// Sums is a digest of fixed size. Each row is a sum over the records of the peers whose
// names hash to it, so copies that differ can find out in which rows.
type Sums []uint64

// Row returns the row of n.
func (s Sums) Row(n peer.Name) int {
	h := fnv.New32a()
	h.Write(n[:])
	return int(h.Sum32() % uint32(len(s)))
}

// Add adds a record of n.
func (s Sums) Add(n peer.Name, known []byte) {
	h := fnv.New64a()
	h.Write(known)
	s[s.Row(n)] += h.Sum64()
}

// Append appends the rows to b, 8 bytes each, big-endian.
func (s Sums) Append(b []byte) []byte {
	for _, sum := range s {
		b = binary.BigEndian.AppendUint64(b, sum)
	}
	return b
}

// Differ compares s with theirs, which Append made from the equally long Sums of
// another copy.
func (s Sums) Differ(theirs []byte) (rows []bool, some bool) {
	rows = make([]bool, len(s))
	for i, sum := range s {
		rows[i] = binary.BigEndian.Uint64(theirs[8*i:]) != sum
		some = some || rows[i]
	}
	return rows, some
}
