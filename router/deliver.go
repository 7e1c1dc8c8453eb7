package router

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/router/offload"
	"github.com/weft-net/weft/router/tap"
)

// toHost collects a frame for the containers of this host. flushTAP delivers it. The
// frame is borrowed until then, and its headers may be changed.
func (ln *lane) toHost(f frame) {
	if ln.deliver.Full() {
		ln.flushTAP()
	}
	b := f.bytes()
	if len(b) > 0 && b[0]&1 != 0 {
		ln.r.hear(b, false)
	}
	if ln.r.isFalse(b) {
		ln.r.drops.add(DropFalseAddr)
		return
	}
	if f.partial && !ln.can.Checksum {
		complete(b)
		f.partial = false
	}
	ln.deliver.Add(b, f.partial)
}

// flushTAP delivers the frames that toHost collected.
func (ln *lane) flushTAP() {
	c := ln.deliver
	if c.Len() == 0 {
		return
	}
	for i := range c.Len() {
		ln.host(c.Frame(i))
	}
	c.Reset()
	c.TCP = ln.can.TCP && !ln.r.refused[offload.TCP4].Load()
	c.UDP = ln.can.UDP && !ln.r.refused[offload.UDP].Load()
}

// host writes one packet to the TAP and counts it as the count frames that it
// consists of.
func (ln *lane) host(h offload.Header, parts [][]byte, count int) {
	err := ln.tap.Write(h, parts)
	switch {
	case err == nil:
		ln.r.tapOut.Add(uint64(count))
		if h.Kind != offload.None {
			ln.r.tapGSOOut.Add(1)
		}
	case h.Kind != offload.None && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EIO) || errors.Is(err, tap.ErrOffload)):
		ln.hostApart(h, parts, err)
	default:
		ln.r.drops[DropTAP].Add(uint64(count))
	}
}

// hostAnswer writes a frame that this router made.
func (ln *lane) hostAnswer(b []byte) {
	ln.parts[0] = b
	ln.host(offload.Header{}, ln.parts[:], 1)
}

// hostApart writes the frames of a GSO packet one by one after the kernel refused
// it, and stops making GSO packets of its kind. Some kernels of 2024 refuse them
// because of a fault in virtio_net_hdr_to_skb, and would refuse every one.
func (ln *lane) hostApart(h offload.Header, parts [][]byte, cause error) {
	kind := h.Kind
	if kind == offload.TCP6 {
		kind = offload.TCP4
	}
	gso := make([]byte, 0, maxGSO) // at most once in a process
	for _, p := range parts {
		gso = append(gso, p...)
	}
	var s offload.Splitter
	if err := s.Reset(h, gso); err != nil {
		ln.r.drops.add(DropTAP)
		return
	}
	b := make([]byte, s.Len(0))
	before := ln.r.tapOut.Load()
	for i := range s.Count() {
		s.PutComplete(b, i)
		ln.host(offload.Header{}, [][]byte{b[:s.Len(i)]}, 1)
	}
	// A TAP that is down refuses every frame, with the same error.
	if ln.r.tapOut.Load() != before && !ln.r.refused[kind].Swap(true) {
		ln.r.log.Warn("the kernel refused a GSO packet: frames are no longer merged", "kind", kind, "err", cause)
	}
}
