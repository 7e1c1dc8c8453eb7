package daemon

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/count"
	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/ipam"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/passwords"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/rotation"
)

// keyPasswords holds the passwords that took the place of those of the configuration; see
// rotation.Machine.Saved.
const keyPasswords = "passwords"

// openPasswords makes the Keeper of this host's passwords.
func (h *host) openPasswords(id *peer.Identity) error {
	k, notes, err := passwords.Open(passwords.Config{
		Identity: id, Configured: h.config.Passwords, Read: h.config.ReadPasswords, Check: CheckPasswords,
		Load: func() ([]byte, error) { return h.store.Get(bucketDaemon, []byte(keyPasswords)) },
		Save: func(b []byte) error {
			return h.store.Apply([]store.Write{{Bucket: bucketDaemon, Key: []byte(keyPasswords), Value: b}})
		},
		Changed: func(list []string) error { return h.router.SetBinding(h.bind(list)) },
		Members: h.members,
		Log:     h.log.With("part", "passwords"),
	})
	if err != nil {
		return err
	}
	for _, n := range notes {
		h.log.Warn("the passwords of an earlier run", "warning", n)
	}
	h.passwords, h.notes = k, append(h.notes, notes...)
	return nil
}

// members returns the peers that own addresses or have a vote, in any range, and the voters.
func (h *host) members() (all, voters []passwords.Member) {
	convert := func(list []ring.Holder) (out []passwords.Member) {
		for _, m := range list {
			out = append(out, passwords.Member{Name: m.Name, Key: m.Key})
		}
		return out
	}
	for _, a := range h.allocators {
		owners, v := a.Members()
		all, voters = append(all, convert(owners)...), append(voters, convert(v)...)
	}
	return all, voters
}

// Password implements api.Passwords.
func (h *host) Password(context.Context) (api.PasswordReply, error) {
	list := h.passwords.Texts()
	if len(list) == 0 {
		return api.PasswordReply{}, passwords.ErrNoPassword
	}
	return api.PasswordReply{Password: []byte(list[0])}, nil
}

// Rotate implements api.Passwords.
func (h *host) Rotate(ctx context.Context, r api.RotateRequest) (api.Rotation, error) {
	if a := h.config.PasswordAdvice; a != "" {
		return api.Rotation{}, unavailable("%s", a)
	}
	names, err := h.resolveAll(r.Peers)
	if err != nil {
		return api.Rotation{}, err
	}
	text := string(r.Password)
	if text != "" {
		if err := CheckPasswords([]string{text}); err != nil {
			return api.Rotation{}, usage("%w", err)
		}
	}
	if err := h.passwords.Start(text, names, r.Continue); err != nil {
		return api.Rotation{}, fmt.Errorf("change the password: %w", err)
	}
	return h.Rotation(ctx)
}

var steps = map[rotation.Step]string{
	rotation.Silent: api.StepSilent, rotation.Behind: api.StepBehind, rotation.Accepts: api.StepAccepts,
	rotation.Offers: api.StepOffers, rotation.Finished: api.StepFinished,
}

// Rotation implements api.Passwords.
func (h *host) Rotation(context.Context) (api.Rotation, error) {
	s := h.passwords.Status()
	if !s.On {
		return api.Rotation{}, passwords.ErrNoPassword
	}
	r := api.Rotation{
		Running: s.Running, Target: s.Target.String(), Ordered: s.Ordered, Own: s.Own, Resumable: s.Resumable, Bans: h.bans(),
		Step: steps[s.Step], Voter: s.Voter, Faults: s.Faults, Peers: []api.RotationPeer{},
	}
	if !s.By.IsZero() {
		r.By = h.describe(s.By)
	}
	if s.Time > 0 {
		r.Since = time.UnixMicro(s.Time)
	}
	for _, p := range s.Peers {
		_, direct := s.Direct[p.Name]
		r.Peers = append(r.Peers, api.RotationPeer{
			Direct: direct, Peer: p.Name.String(), NickName: h.mesh.View().Nickname(p.Name), Step: steps[p.Step],
			Reachable: s.Reachable[p.Name], Needed: p.Member, Named: p.Named,
		})
	}
	return r, nil
}

// bans reports whether peers are banned.
func (h *host) bans() bool {
	return slices.ContainsFunc(h.allocators, func(a *ipam.Allocator) bool { return len(a.Status().Banned) > 0 })
}

// maxBehind bounds the peers that one warning names.
const maxBehind = 5

// rotationWarnings are what a user should know about the password.
func (h *host) rotationWarnings() []string {
	s := h.passwords.Status()
	out := slices.Clone(s.Faults)
	if !s.Running {
		return out
	}
	var behind []string
	for _, p := range s.Peers {
		if p.Member && p.Step < rotation.Offers {
			behind = append(behind, h.describe(p.Name))
		}
	}
	text := "the password is being changed"
	if n := len(behind); n > maxBehind {
		behind = append(behind[:maxBehind], count.Of(n-maxBehind, "other", "others"))
	}
	if len(behind) > 0 {
		text += ", and these have still to follow: " + strings.Join(behind, ", ")
	}
	return append(out, text+" ('weft rotate --status')")
}
