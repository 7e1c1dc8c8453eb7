package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
)

// redirected is TC_ACT_REDIRECT of linux/pkt_cls.h.
const redirected = 7

// loopback is the index of lo, the interface of frames in a trial.
const loopback = 1

// tryExpress runs the programs of express with maps of their own: one puts a frame
// into VXLAN, the other takes it out. A kernel may load them and then refuse a
// helper call, such as one with flags of bpf_skb_adjust_room that it does not know.
// Then every frame would continue to the bridge.
func tryExpress(spec *ebpf.CollectionSpec) error {
	spec = spec.Copy()
	for _, name := range []string{bpfProgFromPort, bpfProgFromTap, bpfProgFromVxlan} {
		delete(spec.Programs, name)
	}
	spec.Maps[bpfMapTraffic].MaxEntries = 3
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		return fmt.Errorf("load the programs of express: %w", err)
	}
	defer coll.Close()

	macs := [3]MACKey{1: {Addr: [6]byte{2, 0, 0, 0, 0, 1}}, 2: {Addr: [6]byte{2, 0, 0, 0, 0, 2}}}
	hosts := [3]Addr{1: AddrOf(netip.AddrFrom4([4]byte{192, 0, 2, 1})), 2: AddrOf(netip.AddrFrom4([4]byte{192, 0, 2, 2}))}
	run := func(prog string, self, peer uint16, frame []byte) ([]byte, error) {
		err := errors.Join(
			coll.Maps[bpfMapConfig].Put(uint32(0), &Config{Self: self, Flags: ConfigExpress, VXLANPort: 6784}),
			coll.Maps[bpfMapMacs].Put(&macs[self], &MACEntry{Peer: self, Flags: MACExpress, Ifindex: loopback}),
			coll.Maps[bpfMapMacs].Put(&macs[peer], &MACEntry{Peer: peer}),
			coll.Maps[bpfMapRemotes].Put(&hosts[peer], &Remote{Peer: peer, Local: hosts[self]}),
			coll.Maps[bpfMapPeers].Put(uint32(peer), &PeerEntry{
				Flags: PeerKnown | PeerFast | PeerExpress, Next: peer, MTU: 1400, Ifindex: loopback,
				Remote: hosts[peer], Local: hosts[self], Gateway: hosts[peer],
			}),
		)
		if err != nil {
			return nil, fmt.Errorf("write maps for a trial of %s: %w", prog, err)
		}
		verdict, out, err := coll.Programs[prog].Test(frame)
		if err != nil {
			return nil, fmt.Errorf("try %s: %w", prog, err)
		}
		if verdict != redirected {
			return nil, fmt.Errorf("the kernel refuses a call of %s", prog)
		}
		return out, nil
	}

	frame := make([]byte, 60)
	copy(frame, macs[2].Addr[:])
	copy(frame[6:], macs[1].Addr[:])
	copy(frame[12:], []byte{8, 0, 0x45, 0, 0, 46}) // an IPv4 packet
	packed, err := run(bpfProgFromContainer, 1, 2, frame)
	if err != nil {
		return err
	}
	clear(packed[:6]) // the address of lo
	back, err := run(bpfProgFromUnderlay, 2, 1, packed)
	if err == nil && !bytes.Equal(back, frame) {
		err = fmt.Errorf("try %s: % x comes out, not the frame that was put in", bpfProgFromUnderlay, back)
	}
	return err
}
