package records

import (
	"cmp"
	"slices"
	"time"

	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
)

// maxWaitlist bounds the bytes of the records that wait for the topology entries of their
// owners, which are flooded at about the same time: 100 hosts with 80 records each that join
// together.
const maxWaitlist = 2 << 20

var waitLimits = gossip.WaitLimits{Bytes: maxWaitlist, TTL: time.Minute}

// waitlist holds records whose owners are not in the topology yet. They are not verified, so a
// record from one neighbour never takes the place of that from another.
type waitlist struct {
	*gossip.Waitlist[waitKey, waiting]
}

type waitKey struct {
	from, owner peer.Name
	bucket      uint8
}

type waiting struct {
	header
	raw []byte
}

// add puts a copy of a record in the waitlist and returns how many were dropped for it.
func (l *waitlist) add(from peer.Name, h header, raw []byte) (dropped int) {
	k := waitKey{from, h.owner, h.bucket}
	if old := l.Get(k); old != nil && cmp.Or(cmp.Compare(old.Value.incarnation, h.incarnation), cmp.Compare(old.Value.version, h.version)) >= 0 {
		return 0
	}
	return l.Add(k, waiting{h, slices.Clone(raw)}, len(raw)+recordCost, from)
}

// take removes the records of the owners for which ok is true, and returns them in order of
// owner and bucket.
func (l *waitlist) take(ok func(owner peer.Name) bool) (list []*gossip.Waiting[waitKey, waiting]) {
	for w := range l.All() {
		if ok(w.Key.owner) {
			list = append(list, w)
		}
	}
	for _, w := range list {
		l.Remove(w.Key)
	}
	slices.SortFunc(list, func(a, b *gossip.Waiting[waitKey, waiting]) int {
		return cmp.Or(a.Key.owner.Compare(b.Key.owner), cmp.Compare(a.Key.bucket, b.Key.bucket), a.Key.from.Compare(b.Key.from))
	})
	return list
}
