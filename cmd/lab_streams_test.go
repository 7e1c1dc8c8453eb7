package cmd

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/lab/testbed"
)

// stream is a TCP connection between two containers that never pauses.
type stream struct {
	received, broken atomic.Uint64
	stop             func()
}

func startStream(t *testing.T, lab *testbed.Lab, from, to testbed.Place, addr netip.Addr) *stream {
	t.Helper()
	var ln net.Listener
	var c net.Conn
	within(t, lab, to, func() (err error) { ln, err = net.Listen("tcp", net.JoinHostPort(addr.String(), "7777")); return err })
	within(t, lab, from, func() (err error) { c, err = net.DialTimeout("tcp", ln.Addr().String(), timeout); return err })
	s := &stream{}
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
			s.received.Add(uint64(n))
			if err != nil {
				if err != io.EOF {
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
		pace := time.NewTicker(time.Millisecond)
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

// flows wants the stream to go on within timeout from now.
func (s *stream) flows(t *testing.T) {
	t.Helper()
	now := s.received.Load()
	eventually(t, "the stream goes on", func() bool { return s.received.Load() > now+1<<16 })
}

// whole ends the stream and wants that it never broke.
func (s *stream) whole(t *testing.T) {
	t.Helper()
	s.stop()
	if s.broken.Load() > 0 {
		t.Error("the connection broke")
	}
}

// echoes answers all TCP connections to a place's port 80 with what they send.
func echoes(t *testing.T, lab *testbed.Lab, place testbed.Place, addr netip.Addr) {
	t.Helper()
	var ln net.Listener
	within(t, lab, place, func() (err error) { ln, err = net.Listen("tcp", net.JoinHostPort(addr.String(), "80")); return err })
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.Copy(c, c) }()
		}
	}()
}

// echoed sends n bytes from a place to port 80 of an address and wants them back.
func echoed(t *testing.T, lab *testbed.Lab, from testbed.Place, to netip.Addr, n int) {
	t.Helper()
	within(t, lab, from, func() error {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(to.String(), "80"), timeout)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(timeout))
		go c.Write(make([]byte, n))
		if got, err := io.ReadFull(c, make([]byte, n)); err != nil {
			return fmt.Errorf("from %s to %s: %d of %d bytes came back: %w", from, to, got, n, err)
		}
		return nil
	})
}
