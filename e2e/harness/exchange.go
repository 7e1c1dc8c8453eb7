package harness

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/internal/poll"
)

const (
	// exchangeEvery is the interval of the datagrams of an Exchange.
	exchangeEvery = 10 * time.Millisecond
	// exchangeEnd is how long after the last one the answers may come.
	exchangeEnd = 2 * time.Second
	// exchangeLen is the length of a datagram in bytes. It begins with its number.
	exchangeLen = 100
)

// Exchange sends numbered datagrams from one container to another, which sends each back. It
// knows which were lost, and on which way.
type Exchange struct {
	from, to     testbed.Place
	client, echo *net.UDPConn
	begun        time.Time
	overflows    uint64 // of the kernel's queues before
	stop         func() // sends no more
	running      sync.WaitGroup

	mu          sync.Mutex
	sent        []time.Duration // since begun, by number
	there, back map[uint32]bool // the numbers that reached the far end, and that came back
	err         error           // of the last datagram that could not be sent
}

// StartExchange begins an exchange that ends with the test or with Whole. addr is that of the
// far end, which must answer a ping.
func StartExchange(t *testing.T, lab *testbed.Lab, from, to testbed.Place, addr netip.Addr) *Exchange {
	t.Helper()
	Reach(t, lab, from, addr)
	x := &Exchange{from: from, to: to, begun: time.Now(), overflows: nstest.Overflows(t), there: make(map[uint32]bool), back: make(map[uint32]bool)}
	Within(t, lab, to, func() (err error) {
		if x.echo, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0))); err != nil {
			return err
		}
		return testbed.HoldMore(x.echo)
	})
	Within(t, lab, from, func() (err error) {
		if x.client, err = net.DialUDP("udp", nil, x.echo.LocalAddr().(*net.UDPAddr)); err != nil {
			return err
		}
		return testbed.HoldMore(x.client)
	})
	stopped := make(chan struct{})
	x.stop = sync.OnceFunc(func() { close(stopped) })
	x.running.Go(func() { x.send(stopped) })
	x.running.Go(x.answer)
	x.running.Go(x.receive)
	t.Cleanup(func() {
		x.stop()
		x.client.Close()
		x.echo.Close()
		x.running.Wait()
	})
	return x
}

func (x *Exchange) send(stopped <-chan struct{}) {
	tick := time.NewTicker(exchangeEvery)
	defer tick.Stop()
	b := make([]byte, exchangeLen)
	for {
		x.mu.Lock()
		binary.BigEndian.PutUint32(b, uint32(len(x.sent)))
		x.sent = append(x.sent, time.Since(x.begun))
		x.mu.Unlock()
		if _, err := x.client.Write(b); err != nil {
			x.mu.Lock()
			x.err = err
			x.mu.Unlock()
		}
		select {
		case <-tick.C:
		case <-stopped:
			return
		}
	}
}

// answer sends back what reaches the far end.
func (x *Exchange) answer() {
	b := make([]byte, exchangeLen)
	for {
		n, from, err := x.echo.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n < exchangeLen {
			continue
		}
		x.mu.Lock()
		x.there[binary.BigEndian.Uint32(b)] = true
		x.mu.Unlock()
		_, _ = x.echo.WriteToUDPAddrPort(b, from) // a loss is counted
	}
}

func (x *Exchange) receive() {
	b := make([]byte, exchangeLen)
	for {
		n, err := x.client.Read(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n < exchangeLen {
			continue
		}
		x.mu.Lock()
		x.back[binary.BigEndian.Uint32(b)] = true
		x.mu.Unlock()
	}
}

// Beats waits until datagrams that are sent after the call come back.
func (x *Exchange) Beats(t *testing.T) {
	t.Helper()
	x.mu.Lock()
	first := len(x.sent)
	x.mu.Unlock()
	Eventually(t, fmt.Sprintf("datagrams from %s to %s come back", x.from, x.to), func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		for n := first; n < len(x.sent); n++ {
			if x.back[uint32(n)] {
				return true
			}
		}
		return false
	})
}

// Lost ends the exchange. It returns how many datagrams were sent, and which were lost on the
// way there and back, with the times at which they were sent.
func (x *Exchange) Lost(t *testing.T) (sent int, there, back []time.Duration) {
	t.Helper()
	x.stop()
	_ = poll.Until(exchangeEnd*slowness, exchangeEvery, poll.True(func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		return len(x.back) == len(x.sent)
	}))
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.err != nil {
		t.Errorf("from %s to %s: %v", x.from, x.to, x.err)
	}
	for n, at := range x.sent {
		switch n := uint32(n); {
		case !x.there[n]:
			there = append(there, at)
		case !x.back[n]:
			back = append(back, at)
		}
	}
	return len(x.sent), there, back
}

// Whole ends the exchange and wants that nothing was lost, unless the kernel dropped packets
// because a queue was full.
func (x *Exchange) Whole(t *testing.T) {
	t.Helper()
	sent, there, back := x.Lost(t)
	t.Logf("from %s to %s: %d datagrams, lost there %d, back %d", x.from, x.to, sent, len(there), len(back))
	if len(there)+len(back) == 0 {
		return
	}
	when := fmt.Sprintf("from %s to %s, begun at %s, lost there: %s; back: %s", x.from, x.to, x.begun.Format("15:04:05.000"), times(there), times(back))
	if nstest.Overflows(t) != x.overflows {
		t.Log("not counted, as the kernel's queues were full:", when)
		return
	}
	t.Error(when)
}

// times writes when datagrams were sent, the first ones if there are many.
func times(list []time.Duration) string {
	const most = 50
	var words []string
	for _, d := range list[:min(most, len(list))] {
		words = append(words, d.Round(time.Millisecond).String())
	}
	if len(list) > most {
		words = append(words, "...")
	}
	return strings.Join(words, " ")
}
