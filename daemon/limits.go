package daemon

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/count"
	"github.com/weft-net/weft/internal/netdev"
)

// keepRefusals is how long after the last refusal of a table of the kernel it is shown.
const keepRefusals = time.Hour

// limits watches tables of the kernel that the host shares. It is safe for concurrent use.
type limits struct {
	read func() ([]netdev.Limit, error)

	mu      sync.Mutex
	refused map[string]uint64    // by table, when it was last read
	grew    map[string]time.Time // when it refused more than before
}

func newLimits(s netdev.Sysctls, bridge string) *limits {
	l := &limits{
		read: func() ([]netdev.Limit, error) {
			list, err := netdev.Limits(s)
			ports, portsErr := netdev.Ports(bridge)
			return append(list, ports), errors.Join(err, portsErr)
		},
		refused: make(map[string]uint64), grew: make(map[string]time.Time),
	}
	l.warnings(time.Now()) // what was refused before this start does not count
	return l
}

// warnings says which tables are full, or nearly.
func (l *limits) warnings(now time.Time) (out []string) {
	list, err := l.read()
	if err != nil {
		return []string{err.Error()}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range list {
		if before, known := l.refused[t.Name]; known && t.Refused > before {
			l.grew[t.Name] = now
		}
		l.refused[t.Name] = t.Refused
		of := ""
		if t.Max > 0 {
			of = fmt.Sprintf(" of %d", t.Max)
		}
		switch at, grew := l.grew[t.Name]; {
		case grew && now.Sub(at) < keepRefusals:
			out = append(out, fmt.Sprintf("%s was full %s ago, so connections failed: %s", t.Name, age(at, now), t.Advice))
		case t.NearlyFull():
			out = append(out, fmt.Sprintf("%s is nearly full (%d%s %s): %s", t.Name, t.Used, of, count.Form(int(max(t.Used, t.Max)), "entry", "entries"), t.Advice))
		}
	}
	return out
}
