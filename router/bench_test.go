package router_test

import (
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/router"
)

// BenchmarkTCP moves a stream between containers of two hosts: switch, seal,
// underlay of 1500 bytes, open, switch. Both routers, sender and receiver are
// in this process and share its CPUs.
func BenchmarkTCP(b *testing.B) {
	for _, mtu := range []int{1376, 8900} {
		underlay := 1500
		if mtu > 1500 {
			underlay = 9000
		}
		for _, streams := range []int{1, 4} {
			b.Run(fmt.Sprintf("mtu=%d/streams=%d", mtu, streams), func(b *testing.B) {
				hosts := newHosts(b, 2, options{mtu: mtu, underlayMTU: underlay})
				var ends [][2]net.Conn
				for range streams {
					ends = append(ends, hosts[0].stream(hosts[1]))
				}
				const chunk = 1 << 17
				b.SetBytes(chunk)
				b.ResetTimer()
				before := cpu(b)
				var wg sync.WaitGroup
				for i, e := range ends {
					n := b.N / streams
					if i == 0 {
						n += b.N % streams
					}
					wg.Go(func() {
						buf := make([]byte, chunk)
						for range n {
							if _, err := e[0].Write(buf); err != nil {
								b.Error(err)
								return
							}
						}
					})
					wg.Go(func() {
						if _, err := io.CopyN(io.Discard, e[1], int64(n)*chunk); err != nil {
							b.Error(err)
						}
					})
				}
				wg.Wait()
				b.ReportMetric(float64(b.N)*chunk*8/1e9/b.Elapsed().Seconds(), "Gbit/s")
				b.ReportMetric((cpu(b)-before).Seconds()/(float64(b.N)*chunk/1e9), "cpu-s/GB")
				for i, h := range hosts {
					s := h.Status()
					for _, l := range s.Links {
						b.Logf("host %d: %d frames from containers, %d GSO packets; %d frames in %d packets sent; %d frames to containers, %d GSO packets; drops %v, %v",
							i, s.TAPIn, s.TAPGSOIn, l.TxFrames, l.TxPackets, s.TAPOut, s.TAPGSOOut, l.Drops, s.Drops)
					}
				}
			})
		}
	}
}

// BenchmarkRelayed moves a stream between containers of two hosts over a third one, whose
// router is in this process, too.
func BenchmarkRelayed(b *testing.B) {
	for _, sealed := range []bool{false, true} {
		b.Run(fmt.Sprintf("sealed=%v", sealed), func(b *testing.B) {
			hosts := newHosts(b, 3, options{mtu: 1376, underlayMTU: 1500, config: func(_ int, c *router.Config) { c.SealRelayed = sealed }})
			e := hosts[0].stream(hosts[2])
			const chunk = 1 << 17
			b.SetBytes(chunk)
			b.ResetTimer()
			before := cpu(b)
			var wg sync.WaitGroup
			wg.Go(func() {
				if _, err := io.CopyN(io.Discard, e[1], int64(b.N)*chunk); err != nil {
					b.Error(err)
				}
			})
			buf := make([]byte, chunk)
			for range b.N {
				if _, err := e[0].Write(buf); err != nil {
					b.Fatal(err)
				}
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)*chunk*8/1e9/b.Elapsed().Seconds(), "Gbit/s")
			b.ReportMetric((cpu(b)-before).Seconds()/(float64(b.N)*chunk/1e9), "cpu-s/GB")
		})
	}
}

// cpu is the CPU time of this process: that of both routers and of both
// ends of the streams. Others on the machine change it less than the rate.
func cpu(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkRoundTrip sends one small message back and forth.
func BenchmarkRoundTrip(b *testing.B) {
	hosts := newHosts(b, 2, options{mtu: 1376, underlayMTU: 1500})
	e := hosts[0].stream(hosts[1])
	buf := make([]byte, 64)
	go func() {
		buf := make([]byte, 64)
		for {
			if _, err := io.ReadFull(e[1], buf); err != nil {
				return
			}
			if _, err := e[1].Write(buf); err != nil {
				return
			}
		}
	}()
	for b.Loop() {
		if _, err := e[0].Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(e[0], buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBlast sends small datagrams as fast as it can for a while and counts
// those that arrive. The link must live through it.
func BenchmarkBlast(b *testing.B) {
	hosts := newHosts(b, 2, options{mtu: 1376, underlayMTU: 1500})
	src, dst := hosts[0].listen(addr(0).Addr()), hosts[1].listen(addr(1).Addr())
	to := dst.LocalAddr().(*net.UDPAddr).AddrPort()
	got := 0
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 100)
		for {
			if _, _, err := dst.ReadFromUDPAddrPort(buf); err != nil {
				return
			}
			got++
		}
	}()
	buf := make([]byte, 64)
	for b.Loop() {
		_, _ = src.WriteToUDPAddrPort(buf, to)
	}
	dst.Close()
	<-done
	b.ReportMetric(float64(got)/b.Elapsed().Seconds(), "received/s")
	for _, h := range hosts {
		if s := h.Status(); s.LinksLost != 0 {
			b.Errorf("the link went down: %+v", s)
		}
	}
}

// stream connects two containers by TCP and returns both ends.
func (h *host) stream(to *host) (ends [2]net.Conn) {
	h.t.Helper()
	var l net.Listener
	to.in(func() (err error) {
		l, err = net.Listen("tcp", addr(slices.Index(*h.all, to)).Addr().String()+":0")
		return err
	})
	defer l.Close()
	h.in(func() (err error) {
		// Dial on this thread: the fast fallback of Dial uses other goroutines.
		ends[0], err = (&net.Dialer{Timeout: 5 * time.Second, FallbackDelay: -1}).Dial("tcp4", l.Addr().String())
		return err
	})
	var err error
	if ends[1], err = l.Accept(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { ends[0].Close(); ends[1].Close() })
	return ends
}
