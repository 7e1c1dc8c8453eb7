package bench

import (
	"fmt"
	"io"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/router/seal"
	"github.com/weft-net/weft/router/wire"
)

// limit is the minimum cost of one gigabyte of one TCP stream on this machine, in core
// seconds, if hosts, generator and sink share the cores:
//
//	seal and open     packets of limitPacket bytes
//	copies            limitCopies per byte: TAP to router, segmentation, router to
//	                  socket, socket to router, router to TAP
//	system calls      limitCalls for each GSO packet of limitGSO bytes: read
//	                  and send, receive and write
//	kernel            generator, sink, veth pairs and network stacks: the cost of
//	                  the raw link when it uses all cores
type limit struct {
	suite                       seal.Suite
	crypto, copies, calls, rest float64
}

const (
	limitPacket = 1400
	limitGSO    = 62 << 10
	limitCopies = 5
	limitCalls  = 4
	limitTime   = 200 * time.Millisecond // for each measurement
)

func (l *limit) sum() float64 { return l.crypto + l.copies + l.calls + l.rest }

// gigabits returns the rate in Gb/s at which all cores are busy.
func (l *limit) gigabits() float64 { return 8 * float64(runtime.NumCPU()) / l.sum() }

// estimateLimit measures the parts of the limit. The result is nil if the raw link was not
// measured.
func estimateLimit(got results) (*limit, error) {
	raw, ok := got.median(sleeveRuns[0].metrics[0].name, pathRaw)
	if !ok {
		return nil, nil
	}
	suite, _ := seal.Choose(seal.Local(), seal.Local())
	sealing, err := cryptoCost(suite)
	if err != nil {
		return nil, err
	}
	from, to := make([]byte, limitGSO), make([]byte, limitGSO)
	copying := secondsEach(func() { copy(to, from) }) / limitGSO
	call := secondsEach(func() { unix.RawSyscall(unix.SYS_GETPPID, 0, 0, 0) })
	return &limit{
		suite: suite, crypto: 1e9 * sealing, copies: 1e9 * limitCopies * copying,
		calls: 1e9 / limitGSO * limitCalls * call, rest: 8 * float64(runtime.NumCPU()) / raw,
	}, nil
}

// cryptoCost returns the time to seal and open one byte, in seconds.
func cryptoCost(suite seal.Suite) (float64, error) {
	key := seal.Key{1}
	tx, err := seal.NewTx(suite, key, 1, 1)
	if err != nil {
		return 0, err
	}
	rx, err := seal.NewRx(suite, key)
	if err != nil {
		return 0, err
	}
	var nonce seal.Nonce
	buf := make([]byte, wire.HeaderLen+limitPacket, wire.Overhead+limitPacket)
	var failed error
	each := secondsEach(func() {
		p, err := tx.Seal(wire.Data, 0, buf, &nonce)
		if err == nil {
			var h wire.Header
			if h, err = wire.ParseHeader(p); err == nil {
				_, _, err = rx.Open(h, p, &nonce)
			}
		}
		if err != nil {
			failed = fmt.Errorf("measure %s: %w", suite, err)
		}
	})
	return each / limitPacket, failed
}

// secondsEach returns the mean time of one call of f in seconds.
func secondsEach(f func()) float64 {
	n := 0
	start := time.Now()
	for time.Since(start) < limitTime {
		for range 100 {
			f()
		}
		n += 100
	}
	return time.Since(start).Seconds() / float64(n)
}

func printLimit(w io.Writer, l *limit, got results) {
	if l == nil {
		return
	}
	fmt.Fprintf(w, "estimate of the limit for one TCP stream, in core seconds per gigabyte:\n"+
		"  %s, seal and open %.2f; %d copies %.2f; system calls %.2f; generator, sink and kernel %.2f (the raw link): %.2f\n",
		l.suite, l.crypto, limitCopies, l.copies, l.calls, l.rest, l.sum())
	near := ""
	if weft, ok := got.median(sleeveRuns[0].metrics[0].name, pathWeft); ok {
		near = fmt.Sprintf("; weft reaches %.0f %% of it", 100*weft/l.gigabits())
	}
	fmt.Fprintf(w, "  with %d cores %.1f Gb/s%s\n\n", runtime.NumCPU(), l.gigabits(), near)
}
