package cmd

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/api"
)

// ban and unban say who is missing, wait, and say how it ended.
func TestBan(t *testing.T) {
	const evil = "02:00:00:00:00:09"
	h1, h2, h4 := api.Voter{Peer: "02:00:00:00:00:01", NickName: "h1"}, api.Voter{Peer: "02:00:00:00:00:02", NickName: "h2"}, api.Voter{Peer: "02:00:00:00:00:04"}
	vote := func(kind string, votes ...api.Voter) api.Vote {
		v := api.Vote{Kind: kind, Peer: evil, NickName: "h9", Needed: 2, For: votes, Until: time.Date(2030, 1, 1, 15, 4, 5, 0, time.Local)}
		for _, m := range []api.Voter{h1, h2, h4} {
			if !slices.Contains(votes, m) {
				v.Missing = append(v.Missing, m)
			}
		}
		return v
	}
	decided := func(kind string) api.Vote { return api.Vote{Kind: kind, Peer: evil, Decided: true} }
	over := vote(api.VoteBan, h1)
	over.Until = time.Time{}
	one := "ban of 02:00:00:00:00:09(h9): 1 of 2 votes (02:00:00:00:00:01(h1)); 1 missing, of 02:00:00:00:00:02(h2), 02:00:00:00:00:04\n"
	for _, test := range []struct {
		name, line     string
		votes          []api.Vote
		code           int
		stdout, stderr string
	}{
		{"others follow", "ban h9", []api.Vote{vote(api.VoteBan, h1), vote(api.VoteBan, h1), decided(api.VoteBan)}, ExitOK,
			one + "02:00:00:00:00:09(h9) is banned.\n", ""},
		{"last vote", "unban h9", []api.Vote{decided(api.VoteUnban)}, ExitOK, "02:00:00:00:00:09 may be in the mesh again.\n", ""},
		{"only vote", "ban h9 --timeout 0", []api.Vote{vote(api.VoteBan, h1)}, ExitOK, one, ""},
		{"no decision", "ban h9 --timeout 1ms", []api.Vote{vote(api.VoteBan, h1)}, ExitFailed, one,
			"weft: not decided: " + strings.TrimSpace(one) + "; the vote of this host holds until 15:04:05, and 'weft unban 02:00:00:00:00:09' takes it back\n"},
		{"taken back", "unban h9", []api.Vote{{Kind: api.VoteBan, Peer: evil, TakenBack: true}}, ExitOK,
			"The vote of this host for the ban of 02:00:00:00:00:09 is taken back.\n", ""},
		{"taken back by another call", "ban h9", []api.Vote{vote(api.VoteBan, h1), over}, ExitFailed, one,
			"weft: ban of 02:00:00:00:00:09(h9): the vote of this host has ended, or was taken back\n"},
	} {
		b := &fakeBackend{report: someReport(), votes: test.votes}
		code, stdout, stderr := weft(append(strings.Fields(test.line), "--socket", serve(t, b))...)
		if code != test.code || stdout != test.stdout || stderr != test.stderr {
			t.Errorf("%s: exit code %d\n%s%s", test.name, code, stdout, stderr)
		}
		for i, call := range b.calls {
			if r := call.(api.BanRequest); r.Look != (i > 0) || r.Unban != strings.HasPrefix(test.line, "unban") {
				t.Errorf("%s: request %d is %+v", test.name, i, r)
			}
		}
	}
}
