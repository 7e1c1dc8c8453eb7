package dial

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/mesh/peer"
)

var (
	self  = peer.Name{2, 5}
	lower = peer.Name{2, 1}
	upper = peer.Name{2, 9}
	t0    = time.Unix(1_700_000_000, 0)
	errNo = errors.New("connection refused")
	addr  = netip.MustParseAddrPort("10.0.0.1:6783")
)

func maker(t *testing.T, limit int) *Maker {
	t.Helper()
	return New(self, limit, true, seed.Rand(t))
}

func TestBackOffGrowsByHalfToItsBound(t *testing.T) {
	m, now := maker(t, 0), t0
	m.AddTarget("h1")
	want := float64(FirstDelay)
	for i := range 40 {
		got := m.Tick(now)
		if len(got) != 1 || got[0].Addr != "h1" {
			t.Fatalf("attempt %d: %+v", i, got)
		}
		m.Done(got[0].Key, peer.Name{}, errNo, now)
		wait := m.Status()[0].Retry.Sub(now)
		if float64(wait) < want/2-1 || float64(wait) > want*3/2+1 {
			t.Fatalf("attempt %d: waits %v, want %v plus or minus half", i, wait, time.Duration(want))
		}
		if m.Tick(now.Add(wait-1)) != nil {
			t.Fatal("dials too early")
		}
		now = now.Add(wait)
		want = min(want*1.5, float64(MaxDelay))
	}
}

func TestLivingMemberIsDialledMoreOften(t *testing.T) {
	m, now := maker(t, 0), t0
	for range 30 {
		m.Member(lower, []netip.AddrPort{addr}, now)
		now = now.Add(2 * MaxDelayAlive)
		got := m.Tick(now)
		if len(got) != 1 {
			t.Fatal("a member that is alive waits longer than MaxDelayAlive")
		}
		m.Done(got[0].Key, peer.Name{}, errNo, now)
	}
}

func TestSessionStopsDialling(t *testing.T) {
	m := maker(t, 0)
	m.AddTarget("h1")
	m.Member(lower, []netip.AddrPort{addr}, t0)
	m.SessionUp(lower)
	got := m.Tick(t0)
	if len(got) != 1 || got[0].Addr != "h1" {
		t.Fatalf("%+v", got)
	}
	m.Done(got[0].Key, lower, nil, t0) // the target is that peer: refused as a duplicate
	if got := m.Tick(t0.Add(time.Hour)); got != nil {
		t.Errorf("dials %+v although there is a session", got)
	}
	m.SessionDown(lower, 2*StableAfter, errNo, t0.Add(time.Hour))
	if got := m.Tick(t0.Add(time.Hour + 2*FirstDelay)); len(got) != 2 {
		t.Errorf("dials %+v right after the session ended", got)
	}
}

func TestOwnAddressIsTriedOnce(t *testing.T) {
	m := maker(t, 0)
	m.AddTarget("me")
	m.Done(m.Tick(t0)[0].Key, self, errNo, t0)
	if got := m.Tick(t0.Add(time.Hour)); got != nil {
		t.Errorf("%+v", got)
	}
}

func TestLimitCountsSessionsAndAttempts(t *testing.T) {
	m := maker(t, 2)
	m.SessionUp(upper)
	m.AddTarget("a")
	m.AddTarget("b")
	if got := m.Tick(t0); len(got) != 1 {
		t.Errorf("%d attempts with one session and a limit of 2", len(got))
	}
	m.SessionUp(lower)
	if !m.Full() {
		t.Error("not full")
	}
}

// A peer of an earlier run is dialled at once, whatever the order of the names and although the
// mesh does not know it yet, and then as a lost member is. Without discovery it is not.
func TestRememberedPeerIsDialledAtOnce(t *testing.T) {
	for _, n := range []peer.Name{lower, upper} {
		m, now := maker(t, 0), t0
		m.Remember(n, addr, now)
		m.Members(nil, now)
		got := m.Tick(now)
		if len(got) != 1 || got[0].Addr != addr.String() {
			t.Fatalf("%s: %+v", n, got)
		}
		m.Done(got[0].Key, peer.Name{}, errNo, now)
		for range 100 {
			now = now.Add(LostMemberTTL / 50)
			for _, a := range m.Tick(now) {
				m.Done(a.Key, peer.Name{}, errNo, now)
			}
		}
		if s := m.Status(); len(s) != 0 {
			t.Errorf("after %v: %+v", now.Sub(t0), s)
		}
	}
	m := New(self, 0, false, seed.Rand(t))
	m.Remember(lower, addr, t0)
	if got := m.Tick(t0); len(got) != 0 {
		t.Errorf("without discovery: %+v", got)
	}
}

func TestHigherNameWaitsALittle(t *testing.T) {
	m := maker(t, 0)
	m.Member(upper, []netip.AddrPort{addr}, t0)
	m.Member(lower, []netip.AddrPort{addr}, t0)
	if got := m.Tick(t0); len(got) != 1 || got[0].Key.peer != upper {
		t.Errorf("%+v", got)
	}
}

func TestLostMemberIsTriedForAnHourAndOneThatLeftIsNot(t *testing.T) {
	m := maker(t, 0)
	m.Member(upper, []netip.AddrPort{addr}, t0)
	m.MemberLost(upper, t0)
	if got := m.Tick(t0.Add(LostMemberTTL / 2)); len(got) != 1 {
		t.Error("a lost member is not dialled")
	} else {
		m.Done(got[0].Key, peer.Name{}, errNo, t0.Add(LostMemberTTL/2))
	}
	if m.Tick(t0.Add(LostMemberTTL + time.Minute)); len(m.Status()) != 0 {
		t.Error("a lost member is kept forever")
	}
	m.Member(upper, []netip.AddrPort{addr}, t0)
	m.MemberLeft(upper, t0)
	if got := m.Tick(t0.Add(leftPause / 2)); got != nil {
		t.Error("a member that left is dialled")
	}
	m.Members(nil, t0)
	if len(m.Status()) != 0 {
		t.Error("a member that left is kept")
	}
	// It came back before the mesh noticed that it was gone.
	m.Member(upper, []netip.AddrPort{addr}, t0)
	m.MemberLeft(upper, t0)
	m.Member(upper, []netip.AddrPort{addr}, t0)
	if got := m.Tick(t0.Add(2 * leftPause)); len(got) != 1 {
		t.Error("a member that came back is not dialled")
	}
}

func memberName(i int) peer.Name { return peer.Name{2, 9, 0, 0, byte(i >> 8), byte(i)} }

// Thousands of members state addresses of one host that is no peer. It gets few
// connections, and other members are dialled all the same.
func TestManyMembersCannotFloodOneHost(t *testing.T) {
	m := maker(t, 0)
	members := make(map[peer.Name][]netip.AddrPort)
	victim := netip.MustParseAddr("192.0.2.1")
	for i := 1; i < 3000; i++ { // upper is the first
		members[memberName(i)] = []netip.AddrPort{netip.AddrPortFrom(victim, uint16(i+1))}
	}
	members[upper] = []netip.AddrPort{addr}
	m.Members(members, t0)
	attempts, reached := 0, false
	now := t0
	for ; now.Before(t0.Add(time.Hour)); now = m.Next().Add(1) {
		got := m.Tick(now)
		for _, a := range got {
			if a.Addr == addr.String() {
				reached = true
				m.SessionUp(upper)
				m.Done(a.Key, upper, nil, now)
				continue
			}
			attempts++
			m.Done(a.Key, peer.Name{}, errNo, now)
		}
	}
	if attempts > 40 {
		t.Errorf("%d attempts at one host within an hour", attempts)
	}
	if !reached {
		t.Error("the member that exists is not dialled")
	}
	t.Logf("%d attempts", attempts)
	m.Members(nil, now)
	m.SessionDown(upper, time.Hour, errNo, now)
	m.Tick(now.Add(2 * LostMemberTTL))
	if len(m.all) != 0 || len(m.destinations) != 0 || m.members != 0 {
		t.Errorf("%d candidates (%d counted) and %d destinations are kept", len(m.all), m.members, len(m.destinations))
	}
}

// Addresses that are blackholes occupy only their own share of the attempts.
func TestAttemptsInProgressAreBounded(t *testing.T) {
	m := maker(t, 0)
	members := make(map[peer.Name][]netip.AddrPort)
	for i := range 100 {
		members[memberName(i)] = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 1)}
	}
	m.Members(members, t0)
	for i := range 20 {
		m.AddTarget(string(rune('a' + i)))
	}
	got := m.Tick(t0)
	counts := [2]int{}
	for _, a := range got {
		counts[a.Key.kind()]++
	}
	if counts != [2]int{maxDials, maxDials} {
		t.Errorf("%d members and %d targets are dialled at a time, want %d each", counts[0], counts[1], maxDials)
	}
	if again := m.Tick(t0.Add(blockedDelay)); again != nil {
		t.Errorf("%d more", len(again))
	}
	if next := m.Next(); next.Sub(t0) < blockedDelay {
		t.Errorf("the next tick is after %v", next.Sub(t0))
	}
	if got := m.dialOneAddress(t0); got > maxActive {
		t.Errorf("%d attempts at one address at a time", got)
	}
}

func (m *Maker) dialOneAddress(now time.Time) (most int) {
	m.Members(nil, now)
	m.Tick(now.Add(2 * LostMemberTTL))
	now = now.Add(3 * LostMemberTTL)
	for i := range 100 {
		m.Member(memberName(i), []netip.AddrPort{addr}, now)
	}
	for range 100 {
		m.Tick(now)
		now = now.Add(blockedDelay)
	}
	return m.destinations[addr.Addr()].active
}

func TestMembersAreBoundedAndLostOnesMakeRoom(t *testing.T) {
	m := maker(t, 0)
	for i := range 2 * maxMembers {
		m.Member(memberName(i), []netip.AddrPort{addr}, t0)
	}
	if len(m.all) != maxMembers {
		t.Errorf("%d members, want %d", len(m.all), maxMembers)
	}
	m.MemberLost(memberName(5), t0)
	m.Member(lower, []netip.AddrPort{addr}, t0)
	if m.all[Key{peer: lower}] == nil || m.all[Key{peer: memberName(5)}] != nil {
		t.Error("a lost member does not make room")
	}
	m.Member(lower, nil, t0)
	if m.all[Key{peer: lower}] != nil {
		t.Error("a member without addresses is dialled")
	}
}

// The member list may be wrong, or lied to: it makes nobody a candidate and stops no
// attempts.
func TestMemberListGivesOnlyHints(t *testing.T) {
	m := maker(t, 0)
	m.Hint(upper, true, t0)
	if len(m.Status()) != 0 {
		t.Error("a hint makes a candidate")
	}
	m.Member(upper, []netip.AddrPort{addr}, t0)
	m.Hint(upper, false, t0)
	a := m.Tick(t0)
	if len(a) != 1 {
		t.Fatal("a hint stops attempts")
	}
	m.Done(a[0].Key, peer.Name{}, errNo, t0)
	m.all[a[0].Key].retry = t0.Add(MaxDelay)
	m.Hint(upper, true, t0)
	if got := m.Tick(t0.Add(2 * FirstDelay)); len(got) != 1 {
		t.Error("a member that is said to be back is not dialled soon")
	}
}

func TestEachAddressOfAMemberIsTried(t *testing.T) {
	m := maker(t, 0)
	m.Member(upper, []netip.AddrPort{addr, netip.MustParseAddrPort("[fd00::1]:6783")}, t0)
	a := m.Tick(t0)[0]
	m.Done(a.Key, peer.Name{}, errNo, t0)
	b := m.Tick(t0)
	if len(b) != 1 || b[0].Addr == a.Addr {
		t.Errorf("after %s comes %+v", a.Addr, b)
	}
}

func TestForgottenTargetIsNotDialled(t *testing.T) {
	m := maker(t, 0)
	m.AddTarget("h1")
	a := m.Tick(t0)
	if !m.ForgetTarget("h1") || m.ForgetTarget("h1") {
		t.Error("ForgetTarget does not report whether the target existed")
	}
	m.Done(a[0].Key, peer.Name{}, errNo, t0)
	if m.Tick(t0.Add(time.Hour)) != nil || len(m.Targets()) != 0 {
		t.Error("a forgotten target is dialled")
	}
}

func TestAnotherPeerAtAMembersAddressIsAnError(t *testing.T) {
	for _, n := range []peer.Name{self, upper} {
		m := maker(t, 0)
		m.Member(lower, []netip.AddrPort{addr}, t0)
		now := t0.Add(2 * FirstDelay)
		m.Done(m.Tick(now)[0].Key, n, nil, now)
		if s := m.Status()[0]; s.Err == nil || s.State != Waiting || s.Peer != lower {
			t.Errorf("%s answers: %+v", n, s)
		}
	}
}

// Members and newcomers do not take the places of targets.
func TestTargetsKeepAShareOfTheSessions(t *testing.T) {
	m := maker(t, 16)
	m.AddTarget("a")
	m.AddTarget("b")
	m.AddTarget("c")
	for i := range 13 {
		m.SessionUp(memberName(i + 1))
	}
	if m.FullForOthers() {
		t.Error("full with 13 sessions of 16")
	}
	m.SessionUp(memberName(14))
	if !m.FullForOthers() || m.Full() {
		t.Error("of 16 sessions not 2 are kept for targets")
	}
	m.Member(upper, []netip.AddrPort{addr}, t0)
	for _, a := range m.Tick(t0) {
		if !a.Key.IsTarget() {
			t.Error("a member is dialled in place of a target")
		}
		m.SessionUp(lower)
		m.Done(a.Key, lower, nil, t0)
	}
	if !m.IsTarget(lower) || m.IsTarget(upper) {
		t.Error("the peer of a target is not known as one")
	}
}

func TestTargetsAreAwaited(t *testing.T) {
	m := maker(t, 0)
	if m.AwaitsTarget() {
		t.Error("targets are awaited and there are none")
	}
	m.AddTarget("itself")
	m.AddTarget("h1")
	for _, a := range m.Tick(t0) {
		if a.Addr == "itself" {
			m.Done(a.Key, m.self, nil, t0)
		} else {
			m.Done(a.Key, peer.Name{}, errors.New("no answer"), t0)
		}
	}
	m.Member(upper, []netip.AddrPort{netip.MustParseAddrPort("192.0.2.9:1")}, t0)
	m.SessionUp(upper)
	if !m.AwaitsTarget() {
		t.Error("a member that no user named is taken for a target")
	}
	for _, a := range m.Tick(t0.Add(time.Hour)) {
		m.Done(a.Key, lower, nil, t0)
	}
	if m.AwaitsTarget() {
		t.Error("a target has answered and is awaited")
	}
	m.ForgetTarget("h1")
	if m.AwaitsTarget() {
		t.Error("only this peer itself is left, and is awaited")
	}
}
