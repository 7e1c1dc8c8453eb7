package resolve_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/neighbour"
	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/mesh/bindings"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/resolve"
)

const perHost = 50

func hostName(i int) peer.Name { return peer.Name{2, 0, 0, 0, byte(i >> 8), byte(i)} }

// container returns the addresses of container n of host i. The host owns them in the ring.
func container(i, n int) bindings.Binding {
	a := [4]byte{10, 32 + byte(i>>8), byte(i), byte(n + 1)}
	return bindings.Binding{
		MAC: bindings.MAC{2, 7, byte(i >> 8), byte(i), 0, byte(n)}, Kind: bindings.Container,
		Addrs: []netip.Addr{netip.AddrFrom4(a), netip.AddrFrom16([16]byte{0xfd, 12: a[0], 13: a[1], 14: a[2], 15: a[3]})},
	}
}

// tableOf returns the table of any of so many hosts: all of them know the same bindings.
func tableOf(t *testing.T, hosts int) *bindings.Table {
	owner := func(a netip.Addr) (peer.Name, bool) {
		b := a.AsSlice()
		return hostName(int(b[len(b)-3]-32)<<8 | int(b[len(b)-2])), true
	}
	keys := make(map[peer.Name]peer.Key)
	for i := range hosts {
		keys[hostName(i)] = peer.Key{1, byte(i >> 8), byte(i)}
	}
	start := time.Unix(1_700_000_000, 0)
	var first *bindings.State
	for i := range hosts {
		id := peer.Cheap{ID: keys[hostName(i)]}
		s := bindings.New(bindings.Config{Self: hostName(i), Signer: id, Verifier: peer.Cheap{}, Start: start, OwnerOf: owner})
		if i == 0 {
			first = s
			first.SetOwners(keys)
		}
		var list []bindings.Binding
		for n := range perHost {
			list = append(list, container(i, n))
		}
		deltas, err := s.Announce(list)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range deltas {
			if i > 0 {
				if _, err := first.Merge(hostName(i), d); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	first.Table().Update(false)
	if c := first.Table().Counts(); c.Bindings != hosts*perHost || c.Refused != 0 {
		t.Fatalf("the table has %+v, want %d bindings", c, hosts*perHost)
	}
	return first.Table()
}

// request returns what a container of another one asks: by ARP, or by neighbour discovery for IPv6.
func request(from, to bindings.Binding, family int) neighbour.Message {
	return neighbour.Message{Target: to.Addrs[family], From: from.Addrs[family], MAC: neighbour.MAC(from.MAC)}
}

// A new flow between two containers sends no request over a link, however many hosts there are: what a
// host gets of the requests of others does not grow with the mesh. Without bindings each request
// crosses as many links as there are other hosts.
func TestBroadcastDoesNotGrowWithTheMesh(t *testing.T) {
	for _, hosts := range []int{10, 100, 1000} {
		t.Run(fmt.Sprint(hosts), func(t *testing.T) {
			t.Parallel()
			table, rng := tableOf(t, hosts), seed.Rand(t)
			place := func(a netip.Addr) resolve.Place {
				l, _ := table.Resolve(a)
				return resolve.Place{MAC: ethernet.MAC(l.MAC), At: l.Owner}
			}
			const flows = 20000
			crossed, answered := 0, 0
			for range flows {
				i, j := rng.IntN(hosts), rng.IntN(hosts)
				from, to := container(i, rng.IntN(perHost)), container(j, rng.IntN(perHost))
				// Both ask: the one that begins, and the one that answers it.
				for _, m := range []neighbour.Message{request(from, to, rng.IntN(2)), request(to, from, rng.IntN(2))} {
					self := hostName(i)
					if m.MAC == neighbour.MAC(to.MAC) {
						self = hostName(j)
					}
					target := place(m.Target)
					switch resolve.Decide(m, self, target, place(m.From), true) {
					case resolve.Answer:
						answered++
						if want := container(index(m.Target)); target.MAC != ethernet.MAC(want.MAC) {
							t.Fatalf("%s is at %s, want %s", m.Target, target.MAC, want.MAC)
						}
					case resolve.Local:
						if target.At != self {
							t.Fatalf("%s is on %s, not on %s", m.Target, target.At, self)
						}
					default:
						crossed += hosts - 1
					}
				}
			}
			if crossed > 0 || answered == 0 {
				t.Errorf("%d flows: %d requests crossed links, %d were answered", flows, crossed, answered)
			}
			t.Logf("%d hosts, %d bindings, %d flows: %d requests were answered where they were sent, %d frames crossed links, %d without bindings",
				hosts, hosts*perHost, flows, answered, crossed, 2*flows*(hosts-1))
		})
	}
}

// index returns the host and the container that have an address.
func index(a netip.Addr) (host, n int) {
	b := a.AsSlice()
	b = b[len(b)-4:]
	return int(binary.BigEndian.Uint16(b[1:])) - 32<<8, int(b[3]) - 1
}
