package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/lab/testbed"
)

// Stream is a TCP connection between two containers that never pauses.
type Stream struct {
	Received, broken atomic.Uint64
	stop             func()
}

// StartStream connects two containers and sends until Whole.
func StartStream(t *testing.T, lab *testbed.Lab, from, to testbed.Place, addr netip.Addr) *Stream {
	t.Helper()
	var ln net.Listener
	var c net.Conn
	Within(t, lab, to, func() (err error) { ln, err = net.Listen("tcp", net.JoinHostPort(addr.String(), "7777")); return err })
	Within(t, lab, from, func() (err error) { c, err = net.DialTimeout("tcp", ln.Addr().String(), Timeout); return err })
	s := &Stream{}
	ended := make(chan struct{}, 2)
	go func() {
		defer func() { ended <- struct{}{} }()
		in, err := ln.Accept()
		if err != nil {
			s.broken.Add(1)
			return
		}
		defer in.Close()
		b := make([]byte, 1<<16)
		for {
			n, err := in.Read(b)
			s.Received.Add(uint64(n))
			if err != nil {
				if !errors.Is(err, io.EOF) {
					s.broken.Add(1)
				}
				return
			}
		}
	}()
	var done atomic.Bool
	go func() {
		defer func() { ended <- struct{}{} }()
		defer c.Close()
		b := make([]byte, 1<<14)
		// 16 MB/s, or what an emulated processor can still encrypt next to other flows and routers that
		// start. With five times as much, packets waited two seconds in queues, which overflowed.
		pace := time.NewTicker(time.Millisecond * slowness * slowness * slowness)
		defer pace.Stop()
		for ; !done.Load(); <-pace.C {
			if _, err := c.Write(b); err != nil {
				s.broken.Add(1)
				return
			}
		}
	}()
	s.stop = func() {
		done.Store(true)
		<-ended
		<-ended
		ln.Close()
	}
	return s
}

// Flows wants the stream to continue within Timeout from now.
func (s *Stream) Flows(t *testing.T) {
	t.Helper()
	now := s.Received.Load()
	Eventually(t, "the stream goes on", func() bool { return s.Received.Load() > now+1<<16 })
}

// Whole ends the stream and wants that it never broke.
func (s *Stream) Whole(t *testing.T) {
	t.Helper()
	s.stop()
	if s.broken.Load() > 0 {
		t.Error("the connection broke")
	}
}

// Echo answers all TCP connections to a place's port 80 with what they send, until
// the end of the test.
func Echo(t *testing.T, l *testbed.Lab, place testbed.Place, addr netip.Addr) {
	t.Helper()
	var ln net.Listener
	Within(t, l, place, func() (err error) { ln, err = net.Listen("tcp", net.JoinHostPort(addr.String(), "80")); return err })
	var conns sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() {
		cancel()
		ln.Close()
		conns.Wait()
	})
	conns.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			// The other end may be in a container that is gone.
			stop := context.AfterFunc(ctx, func() { c.Close() })
			conns.Go(func() {
				defer stop()
				defer c.Close()
				io.Copy(c, c)
			})
		}
	})
}

// Echoed sends n bytes from a place to port 80 of an address and wants them back.
func Echoed(t *testing.T, lab *testbed.Lab, from testbed.Place, to netip.Addr, n int) {
	t.Helper()
	Within(t, lab, from, func() error {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(to.String(), "80"), Timeout)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(Timeout))
		go c.Write(make([]byte, n))
		if got, err := io.ReadFull(c, make([]byte, n)); err != nil {
			return fmt.Errorf("from %s to %s: %d of %d bytes came back: %w", from, to, got, n, err)
		}
		return nil
	})
}
