package api

import (
	"fmt"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/count"
	"github.com/weft-net/weft/internal/render"
)

// The kinds of Vote.
const (
	VoteBan     = "ban"
	VoteUnban   = "unban"
	VoteAdopt   = "adoption"
	VoteRemoval = "removal"
)

// Vote is something that operators want and that the voters of a range have to decide.
type Vote struct {
	Kind     string
	Peer     string
	NickName string
	Ring     string `json:",omitempty"` // of an adoption, instead of a peer
	// For are the voters whose operators want it, and Missing the others that can be
	// reached, without the peer that would be banned.
	For     []Voter
	Missing []Voter
	Needed  int // how many voters decide
	// Until is when the vote of this host ends; zero if it has none.
	Until time.Time `json:",omitzero"`
	// Waits says why it is not decided although enough operators want it.
	Waits string `json:",omitempty"`
	// Decided and TakenBack are set in a BanReply only. TakenBack is set if this host had
	// voted for the opposite, Kind: that vote is void, and there is none in its place.
	Decided   bool `json:",omitempty"`
	TakenBack bool `json:",omitempty"`
}

// Who returns the peer that is voted on.
func (v *Vote) Who() string { return named(v.Peer, v.NickName) }

// Subject returns what is voted on, in words.
func (v *Vote) Subject() string {
	switch v.Kind {
	case VoteUnban:
		return "end of the ban of " + v.Who()
	case VoteAdopt:
		return "adoption of ring " + render.Word(v.Ring)
	}
	return render.Word(v.Kind) + " of " + v.Who()
}

// Text returns how far the vote is, in one line.
func (v *Vote) Text() string {
	s := v.Count()
	if v.Until.IsZero() {
		return s
	}
	s += "; the vote of this host holds until " + v.Until.Format("15:04:05")
	if back := v.TakeBack(); back != "" {
		s += ", and " + back + " takes it back"
	}
	return s
}

// Count returns who agrees and who is missing, in one line.
func (v *Vote) Count() string {
	s := v.Subject() + ": "
	if v.Kind == VoteRemoval {
		return s + render.Text(v.Waits)
	}
	s += fmt.Sprintf("%d of %s", len(v.For), count.Of(v.Needed, "vote", "votes"))
	if len(v.For) > 0 {
		s += " (" + voterNames(v.For) + ")"
	}
	switch more := v.Needed - len(v.For); {
	case more > len(v.Missing) && len(v.Missing) == 0:
		s += fmt.Sprintf("; %d missing, and no other voter can be reached", more)
	case more > len(v.Missing):
		s += fmt.Sprintf("; %d missing, and only %s can be reached", more, voterNames(v.Missing))
	case more > 0:
		s += fmt.Sprintf("; %d missing, of %s", more, voterNames(v.Missing))
	case v.Waits != "":
		s += "; not decided yet: " + render.Text(v.Waits)
	}
	return s
}

// TakeBack returns the command that takes the vote of this host back, "" if there is none.
func (v *Vote) TakeBack() string {
	switch v.Kind {
	case VoteBan:
		return "'weft unban " + render.Word(v.Peer) + "'"
	case VoteUnban:
		return "'weft ban " + render.Word(v.Peer) + "'"
	}
	return ""
}

func voterNames(vs []Voter) string {
	names := make([]string, len(vs))
	for i, v := range vs {
		names[i] = named(v.Peer, v.NickName)
	}
	return strings.Join(names, ", ")
}
