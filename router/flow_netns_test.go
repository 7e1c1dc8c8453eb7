package router_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev/nstest"
)

// flow is numbered datagrams from one container to another, in trains that
// cross the TAP as GSO packets.
type flow struct {
	t        testing.TB
	src, dst *net.UDPConn
	to       netip.AddrPort
	oob, buf []byte
	next     uint32 // number of the next datagram to be sent
	// inOrder is whether the TAP takes a train as GSO packets. Single frames
	// wait in the queue of the processor on which they are written, and those of
	// two may overtake each other.
	inOrder bool
}

const (
	flowSize  = 1300 // bytes of a datagram
	flowTrain = 40   // datagrams of a train
)

func newFlow(t testing.TB, from, to *host, a, b netip.Addr) *flow {
	f := &flow{t: t, src: from.listen(a), dst: to.listen(b), oob: make([]byte, unix.CmsgSpace(2)), buf: make([]byte, flowTrain*flowSize), inOrder: offloads(t).UDP}
	f.to = f.dst.LocalAddr().(*net.UDPAddr).AddrPort()
	h := (*unix.Cmsghdr)(unsafe.Pointer(&f.oob[0]))
	h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(f.oob[unix.CmsgLen(0):], flowSize)
	if err := f.dst.SetReadBuffer(4 << 20); err != nil {
		t.Fatal(err)
	}
	return f
}

// send sends a train in one call.
func (f *flow) send() {
	f.t.Helper()
	for i := range flowTrain {
		b := f.buf[i*flowSize:][:flowSize]
		for j := range b {
			b[j] = byte(f.next)
		}
		binary.BigEndian.PutUint32(b, f.next)
		f.next++
	}
	if _, _, err := f.src.WriteMsgUDPAddrPort(f.buf, f.oob, f.to); err != nil {
		f.t.Fatal(err)
	}
}

// receive waits for one datagram and returns its number.
func (f *flow) receive(wait time.Duration) (uint32, error) {
	f.t.Helper()
	var b [2 * flowSize]byte
	_ = f.dst.SetReadDeadline(time.Now().Add(wait))
	n, err := f.dst.Read(b[:])
	if err != nil {
		return 0, err
	}
	num := binary.BigEndian.Uint32(b[:])
	if n != flowSize || b[4] != byte(num) || b[n-1] != byte(num) {
		return 0, fmt.Errorf("datagram %d has %d bytes, % x at its beginning", num, n, b[:8])
	}
	return num, nil
}

// whole sends a train and wants all of it, in order; and another, if the kernel has
// dropped packets meanwhile for reasons that need not be this test's.
func (f *flow) whole() error {
	f.t.Helper()
	for {
		before := nstest.Overflows(f.t)
		err := f.train()
		if err == nil || nstest.Overflows(f.t) == before {
			return err
		}
		f.t.Logf("once more, as the kernel's queues were full: %v", err)
		for err = nil; err == nil; { // what else has come of that train
			_, err = f.receive(100 * time.Millisecond)
		}
	}
}

func (f *flow) train() error {
	f.t.Helper()
	first := f.next
	f.send()
	var seen [flowTrain]bool
	for i := range uint32(flowTrain) {
		num, err := f.receive(timeout)
		switch n := num - first; {
		case err != nil:
			return fmt.Errorf("after %d of %d datagrams: %w", i, flowTrain, err)
		case n >= flowTrain || seen[n], f.inOrder && n != i:
			return fmt.Errorf("datagram %d came instead of %d", num, first+i)
		default:
			seen[n] = true
		}
	}
	return nil
}

// pin gives a container a permanent entry for another's card, so that it keeps sending
// to it when no answer comes.
func (h *host) pin(other *host, at netip.Addr) {
	h.t.Helper()
	var mac net.HardwareAddr
	other.in(func() error {
		ifc, err := net.InterfaceByName("ethwe")
		if err == nil {
			mac = ifc.HardwareAddr
		}
		return err
	})
	h.in(func() error {
		ifc, err := net.InterfaceByName("ethwe")
		if err != nil {
			return err
		}
		return netlink.NeighSet(&netlink.Neigh{LinkIndex: ifc.Index, State: netlink.NUD_PERMANENT, IP: at.AsSlice(), HardwareAddr: mac})
	})
}
