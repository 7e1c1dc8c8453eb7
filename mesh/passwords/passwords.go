// Package passwords keeps the passwords of one host, and carries out what package rotation
// decides about them: it derives keys, writes them to disk, tells the mesh, publishes what this
// peer accepts, and passes orders on.
package passwords

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/weft-net/weft/mesh"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/records"
	"github.com/weft-net/weft/mesh/replica"
	"github.com/weft-net/weft/mesh/rotation"
	"github.com/weft-net/weft/mesh/session"
)

// Use is the name of what peers publish of their passwords among the uses of mesh/records.
const Use = "passwords"

const (
	tickEvery = time.Second
	// idleEvery is how often the members are read while nothing changes.
	idleEvery = 30 * time.Second
	// readEvery is how often the configuration is read.
	readEvery = 5 * time.Second
	// maxOrders bounds the orders of neighbours that wait. More are dropped; they come again.
	// A neighbour may bring ordersPerSecond with a burst of ordersBurst, so that it does not
	// fill the queue. maxSenders bounds the neighbours that are remembered for it.
	maxOrders       = 64
	ordersPerSecond = 2
	ordersBurst     = 8
	maxSenders      = 4096
	// maxLogged bounds the refusals of orders in the log: so many at once, one a minute later.
	maxLogged   = 10
	loggedEvery = time.Minute
	// Bounds of the records of other peers, in bytes. A peer has one small record.
	recordsOfPeer, recordsOfAll = 8 << 10, 32 << 20
	// generatedBytes is the length of a generated password before it is encoded.
	generatedBytes = 32
)

// Member is a peer that must not lose its access: it owns addresses or has a vote. The key is
// zero if nobody has seen it.
type Member struct {
	Name peer.Name
	Key  peer.KeyID
}

// Mesh is the part of *mesh.Mesh that a Keeper uses.
type Mesh interface {
	SetPasswords(keys []session.PSK) error
	Announce(channel uint8, delta []byte)
	Send(to peer.Name, k mesh.Kind, msg []byte) error
	View() *mesh.View
	Neighbours() map[peer.Name]peer.Key
	Place(peer.Name) (netip.Addr, bool)
	HadBanned(netip.Addr) bool
	IsBanned(peer.KeyID) bool
	Now() time.Time
}

// Config configures a Keeper.
type Config struct {
	Identity *peer.Identity
	// Configured are the passwords of the configuration, the preferred one first. Without any
	// the mesh has no password, and the Keeper does nothing.
	Configured []string
	// Read reads the configuration again. It is nil if that cannot change.
	Read func() ([]string, error)
	// Check returns an error if the passwords of a configuration that was read again cannot be
	// used.
	Check func([]string) error
	// Load and Save keep the passwords over a restart. Load returns nil if there are none.
	// Save is given nil if the configuration says it all.
	Load func() ([]byte, error)
	Save func([]byte) error
	// Changed is called with the passwords that this peer accepts, the one that it offers
	// first, before it accepts them.
	Changed func(passwords []string) error
	// Members returns the peers that own addresses or have a vote, and the voters.
	Members func() (all, voters []Member)
	Log     *slog.Logger

	settle, readEvery time.Duration // in tests
}

const staleConfiguration = "the configuration has a former password, and this host uses the one that took its place; write that one ('weft rotate --show') where the former one is"

// Keeper has the passwords of one host. Make it with Open. Its methods may be called from any
// goroutine.
type Keeper struct {
	cfg    Config
	self   peer.KeyID
	mesh   Mesh // constant once Run is called
	orders chan order
	wake   chan struct{} // of capacity 1
	states *replica.Replica[*records.Map[rotation.State]]

	// sendersMu guards senders, the limits of neighbours. No other lock is taken while it is
	// held.
	sendersMu sync.Mutex
	senders   map[peer.Name]*rate.Limiter

	mu      sync.Mutex
	keys    map[string]session.PSK // of passwords
	machine *rotation.Machine
	read    []string // the configuration when it was last read
	readErr error
	saveErr error
	ids     map[peer.Key]peer.KeyID
	places  map[peer.KeyID]netip.Addr // where peers were last seen
	peersAt time.Time                 // when the members were last read

	refused rate.Sometimes // lines of the log; Run only
}

type order struct {
	from peer.Name
	msg  []byte
}

// Open returns the Keeper of a host. notes are for the user.
func Open(cfg Config) (k *Keeper, notes []string, err error) {
	k = &Keeper{
		cfg: cfg, self: peer.IDOf(cfg.Identity.Key()), orders: make(chan order, maxOrders), wake: make(chan struct{}, 1),
		keys: make(map[string]session.PSK), read: cfg.Configured, refused: rate.Sometimes{First: maxLogged, Interval: loggedEvery}, senders: make(map[peer.Name]*rate.Limiter), ids: make(map[peer.Key]peer.KeyID), places: make(map[peer.KeyID]netip.Addr),
	}
	now := time.Now()
	own := records.New(records.Config[rotation.State]{
		Use: Use, Self: cfg.Identity.Name, Signer: cfg.Identity, Verifier: peer.Ed25519{}, Start: now,
		Decode: func(_ uint8, payload []byte) (rotation.State, error) { return rotation.ParseState(payload) },
		Limits: records.Limits{Owner: recordsOfPeer, Total: recordsOfAll},
	})
	k.states = replica.New(replica.Config{
		What: Use, Announce: func(delta []byte) { k.mesh.Announce(mesh.ChannelPasswords, delta) },
		Now: func() time.Time { return k.clock(time.Now()) }, Log: cfg.Log,
	}, own)
	if len(cfg.Configured) == 0 {
		return k, nil, nil
	}
	var configured []rotation.Password
	for _, p := range cfg.Configured {
		id, err := k.idOf(p)
		if err != nil {
			return nil, nil, err
		}
		configured = append(configured, rotation.Password{Text: p, ID: id})
	}
	saved, err := cfg.Load()
	if err != nil {
		notes = append(notes, fmt.Sprintf("the passwords of the last run could not be read: %v", err))
	}
	m, forgot, err := rotation.New(rotation.Config{
		Self: k.self, Signer: cfg.Identity, Verifier: peer.Ed25519{},
		IDOf: func(text string) rotation.ID {
			id, err := k.idOf(text)
			if err != nil {
				return rotation.ID{}
			}
			return id
		},
		Clock:    func() time.Time { return k.clock(time.Now()) },
		MayOrder: k.mayOrder, Banned: func(id peer.KeyID) bool { return k.mesh.IsBanned(id) },
		Gradual: cfg.Read != nil, Settle: cfg.settle,
	}, configured, saved, now)
	if err != nil {
		notes = append(notes, err.Error()+"; those of the configuration are used")
	}
	if forgot {
		notes = append(notes, "the configuration has another password than this host used before, so only that counts")
	}
	k.machine = m
	for _, p := range m.Passwords() {
		if _, err := k.idOf(p.Text); err != nil {
			return nil, nil, err
		}
	}
	_, err = own.Set(map[uint8][]byte{0: m.State().Append(nil)}) // nobody else uses it yet
	return k, notes, err
}

// idOf returns the id of a password, and keeps its key. It costs a tenth of a second for a new
// one.
func (k *Keeper) idOf(text string) (rotation.ID, error) {
	psk, ok := k.keys[text]
	if !ok {
		var err error
		if psk, err = session.DerivePSK(text); err != nil {
			return rotation.ID{}, err
		}
		if len(k.keys) >= 2*rotation.MaxHeld { // those of refused orders
			clear(k.keys)
		}
		k.keys[text] = psk
	}
	return rotation.ID(psk.ID()), nil
}

// Texts returns the passwords that this host accepts, the one that it offers first.
func (k *Keeper) Texts() (out []string) {
	if k.machine == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.machine.Passwords() {
		out = append(out, p.Text)
	}
	return out
}

// Keys returns the keys of Texts.
func (k *Keeper) Keys() ([]session.PSK, error) {
	if k.machine == nil {
		return nil, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keysOfAll()
}

func (k *Keeper) keysOfAll() (out []session.PSK, err error) {
	for _, p := range k.machine.Passwords() {
		if _, err := k.idOf(p.Text); err != nil {
			return nil, err
		}
		out = append(out, k.keys[p.Text])
	}
	return out, nil
}

// Join joins the Keeper to the mesh. Call it before either runs.
func (k *Keeper) Join(m *mesh.Mesh) {
	k.mesh = m
	m.Register(mesh.ChannelPasswords, k.states.Channel())
	m.Handle(mesh.KindPassword, k.Receive)
}

// Receive handles an order of a neighbour.
func (k *Keeper) Receive(from peer.Name, msg []byte) {
	if !k.mayBring(from) {
		return
	}
	select {
	case k.orders <- order{from, msg}:
	default: // it comes again
	}
}

// mayBring reports whether a neighbour has not brought too many orders.
func (k *Keeper) mayBring(from peer.Name) bool {
	k.sendersMu.Lock()
	defer k.sendersMu.Unlock()
	l := k.senders[from]
	if l == nil {
		if len(k.senders) >= maxSenders {
			clear(k.senders)
		}
		l = rate.NewLimiter(ordersPerSecond, ordersBurst)
		k.senders[from] = l
	}
	return l.Allow()
}

// clock returns the time as most peers see it.
func (k *Keeper) clock(now time.Time) time.Time {
	if k.mesh == nil {
		return now
	}
	return k.mesh.Now()
}

// PeersChanged reports the peers that the mesh reaches, with their keys. The Keeper owns the
// map from now on. It does not wait, neither for the disk nor for Argon2.
func (k *Keeper) PeersChanged(keys map[peer.Name]peer.Key) {
	k.states.PeersChanged(keys)
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Run works until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	readAt := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case o := <-k.orders:
			k.receive(o, time.Now())
		case <-k.wake:
		case <-tick.C:
		}
		now := time.Now()
		if k.cfg.Read != nil && now.Sub(readAt) >= cmp.Or(k.cfg.readEvery, readEvery) {
			readAt = now
			k.reread()
		}
		k.tick(now)
	}
}

// receive handles an order. Whoever floods a host with orders must not fill its log.
func (k *Keeper) receive(o order, now time.Time) {
	key, ok := k.mesh.Neighbours()[o.from]
	if k.machine == nil || !ok {
		return
	}
	k.mu.Lock()
	err := k.machine.Receive(k.keyID(key), o.msg, now)
	k.mu.Unlock()
	if err == nil {
		return
	}
	k.refused.Do(func() { k.cfg.Log.Warn("an order to change the password was refused", "from", o.from, "err", err) })
}

// reread reads the configuration again.
func (k *Keeper) reread() {
	list, err := k.cfg.Read()
	if err == nil && len(list) == 0 {
		err = errors.New("there is none")
	}
	if err == nil && k.cfg.Check != nil {
		err = k.cfg.Check(list)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err == nil && k.machine != nil && !slices.Equal(list, k.read) {
		err = k.configure(list)
	}
	if err != nil {
		err = fmt.Errorf("the configured passwords cannot be used, the present ones stay: %w", err)
		if k.readErr == nil || k.readErr.Error() != err.Error() {
			k.cfg.Log.Warn("the passwords of this host are not those of its configuration", "err", err)
		}
	}
	k.readErr = err
}

// configure tells the machine that the configuration has changed. It is called with mu held.
func (k *Keeper) configure(list []string) error {
	var parsed []rotation.Password
	for _, p := range list {
		id, err := k.idOf(p)
		if err != nil {
			return err
		}
		parsed = append(parsed, rotation.Password{Text: p, ID: id})
	}
	k.read = list
	k.cfg.Log.Info("the configured passwords changed")
	k.machine.Configure(parsed)
	return nil
}

// tick lets the machine take the steps that are due, and carries them out.
func (k *Keeper) tick(now time.Time) {
	k.states.Tick(now)
	if k.machine == nil {
		return
	}
	k.mu.Lock()
	if k.machine.Running() || now.Sub(k.peersAt) >= idleEvery {
		k.updatePeers(now)
	}
	before := k.machine.Passwords()
	changed, messages := k.machine.Tick(now)
	if changed || k.saveErr != nil {
		err := k.carryOut(before)
		if err != nil && k.saveErr == nil {
			k.cfg.Log.Error("the change of the password does not go on", "err", err)
		}
		k.saveErr = err
	}
	to := make(map[peer.KeyID]peer.Name)
	for name, key := range k.mesh.Neighbours() {
		to[k.keyID(key)] = name
	}
	k.mu.Unlock()
	for _, m := range messages {
		if name, ok := to[m.To]; ok {
			_ = k.mesh.Send(name, mesh.KindPassword, m.Bytes) // it is sent again
		}
	}
}

// carryOut makes the present passwords of the machine those of the host, and publishes that.
// Others hear of it only after it is on the disk: they count on it. It is called with mu held.
func (k *Keeper) carryOut(before []rotation.Password) error {
	if err := k.cfg.Save(k.machine.Saved()); err != nil {
		return fmt.Errorf("write the passwords to the state file: %w", err)
	}
	var texts []string
	for _, p := range k.machine.Passwords() {
		texts = append(texts, p.Text)
	}
	if err := k.cfg.Changed(texts); err != nil {
		return err
	}
	keys, err := k.keysOfAll()
	if err != nil {
		return err
	}
	if err := k.mesh.SetPasswords(keys); err != nil {
		return err
	}
	switch now := k.machine.Passwords(); {
	case slices.Equal(now, before) && k.saveErr == nil:
	case len(before) == 0 || now[0] != before[0]:
		k.cfg.Log.Info("this host offers the new password", "fingerprint", now[0].ID, "accepted", len(now))
	case len(now) < len(before):
		k.cfg.Log.Info("this host accepts only the new password", "fingerprint", now[0].ID, "accepted", len(now))
	default:
		k.cfg.Log.Info("the passwords that this host accepts changed", "accepted", len(now))
	}
	return k.states.Change(func(m *records.Map[rotation.State]) ([][]byte, error) {
		return m.Set(map[uint8][]byte{0: k.machine.State().Append(nil)})
	})
}

// keyID returns the id of a key. It is called with mu held.
func (k *Keeper) keyID(key peer.Key) peer.KeyID {
	id, ok := k.ids[key]
	if !ok {
		if len(k.ids) > 1<<14 {
			clear(k.ids)
		}
		id = peer.IDOf(key)
		k.ids[key] = id
	}
	return id
}

// updatePeers tells the machine who is there, and what they publish. It is called with mu held.
func (k *Keeper) updatePeers(now time.Time) {
	k.peersAt = now
	reachable := k.mesh.View().Keys()
	states := make(map[peer.Name]rotation.State)
	k.states.Read(func(m *records.Map[rotation.State]) {
		for n, s := range m.All() {
			states[n] = s
		}
	})
	all, _ := k.cfg.Members()
	peers := make(map[peer.KeyID]rotation.Peer)
	for _, p := range all {
		key := p.Key
		if at, ok := reachable[p.Name]; ok && key == (peer.KeyID{}) {
			key = k.keyID(at)
		}
		peers[key] = rotation.Peer{Name: p.Name, Key: key, Owner: true}
	}
	names := make(map[peer.KeyID]peer.Name)
	for n, at := range reachable {
		key := k.keyID(at)
		names[key] = n
		peers[key] = rotation.Peer{Name: n, Key: key, Owner: peers[key].Owner}
		if a, ok := k.mesh.Place(n); ok {
			k.places[key] = a
		}
	}
	var list []rotation.Peer
	for key, p := range peers {
		// Whoever has the host of a banned peer can make a new key, and get addresses.
		p.Member = !k.mesh.HadBanned(k.places[key])
		list = append(list, p)
	}
	for key := range k.places {
		if _, ok := peers[key]; !ok {
			delete(k.places, key)
		}
	}
	k.machine.SetPeers(list, now)
	neighbours := make(map[peer.KeyID]bool)
	for _, key := range k.mesh.Neighbours() {
		neighbours[k.keyID(key)] = true
	}
	k.machine.SetNeighbours(neighbours)
	for _, p := range list {
		var s rotation.State
		if n, ok := names[p.Key]; ok {
			s = states[n]
		}
		k.machine.SetState(p.Key, s)
	}
}

// mayOrder reports whether the peer with a key has a vote.
func (k *Keeper) mayOrder(key peer.Key) bool {
	_, voters := k.cfg.Members()
	id := k.keyID(key)
	name := k.nameOf(key)
	return !k.mesh.IsBanned(id) && slices.ContainsFunc(voters, func(v Member) bool {
		return v.Key == id || v.Key == peer.KeyID{} && v.Name == name && name == id.Name() // a derived name proves its key
	})
}

// nameOf returns the name of the peer with a key, the zero Name if it cannot be reached.
func (k *Keeper) nameOf(key peer.Key) peer.Name {
	if key == k.cfg.Identity.Key() {
		return k.cfg.Identity.Name
	}
	for n, at := range k.mesh.View().Keys() {
		if at == key {
			return n
		}
	}
	return peer.Name{}
}

// Causes of errors of Start.
var (
	ErrNoPassword = errors.New("the mesh has no password; launch all routers with one")
	ErrNoVote     = rotation.ErrNoVote
)

// Start makes all named peers change to a password: text, or a generated one if it is empty. A
// change that is under way, and that this host began or goesOn says to continue, is not begun
// again: its password stays, and the peers are named in addition. It is begun again if a banned
// peer may know the password.
func (k *Keeper) Start(text string, peers []peer.Name, goesOn bool) error {
	if k.machine == nil {
		return ErrNoPassword
	}
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.updatePeers(now)
	present, own, ok := k.machine.Resumable()
	switch {
	case text != "":
	case ok && (own || goesOn):
		text = present.Text
	case goesOn:
		return errors.New("there is no change that can go on: none is under way, or a banned host may know its password")
	default:
		b := make([]byte, generatedBytes)
		if _, err := io.ReadFull(rand.Reader, b); err != nil {
			return fmt.Errorf("generate a password: %w", err)
		}
		text = base64.RawURLEncoding.EncodeToString(b)
	}
	var keys []peer.KeyID
	for _, p := range k.machine.Status().Peers {
		if slices.Contains(peers, p.Name) {
			keys = append(keys, p.Key)
		}
	}
	id, err := k.idOf(text)
	if err != nil {
		return err
	}
	if err := k.machine.Start(rotation.Password{Text: text, ID: id}, keys, now); err != nil {
		return err
	}
	select {
	case k.wake <- struct{}{}:
	default:
	}
	return nil
}

// Status is the state of the passwords of the mesh.
type Status struct {
	rotation.Status
	// On is set if the mesh has a password.
	On bool
	// By is the peer that gave the order; zero if the configuration did.
	By peer.Name
	// Ordered is set if an order, and not the configuration, has the password.
	Ordered bool
	// Own is set if weft rotate goes on with the change that is under way, and Resumable if it
	// does when it is asked to.
	Own, Resumable bool
	// Voter is set if this host may start a rotation.
	Voter bool
	// Direct has the peers with which this host has a session, so that it knows where they are.
	Direct map[peer.Name]peer.Key
	// Reachable has the peers that can be reached.
	Reachable map[peer.Name]bool
	// Faults say what is wrong, for the user.
	Faults []string
}

// Status returns the present state.
func (k *Keeper) Status() (s Status) {
	if k.machine == nil {
		return s
	}
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.updatePeers(now)
	s = Status{Status: k.machine.Status(), On: true, Voter: k.mayOrder(k.cfg.Identity.Key()), Reachable: make(map[peer.Name]bool)}
	for n := range k.mesh.View().Keys() {
		s.Reachable[n] = true
	}
	_, s.Own, s.Resumable = k.machine.Resumable()
	s.Direct = k.mesh.Neighbours()
	if s.Ordered = s.Status.By != (peer.Key{}); s.Ordered {
		s.By = k.nameOf(s.Status.By)
	}
	if id, err := k.idOf(k.read[0]); err == nil && k.machine.Replaced(id) {
		s.Faults = append(s.Faults, staleConfiguration)
	}
	for _, err := range []error{k.readErr, k.saveErr} {
		if err != nil {
			s.Faults = append(s.Faults, err.Error())
		}
	}
	return s
}

// RecordStats returns what the records of other peers take, and what was refused of them.
func (k *Keeper) RecordStats() records.Stats { return k.states.Stats() }
