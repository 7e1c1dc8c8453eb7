package cmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/render"
)

func (a *app) ban() *cobra.Command {
	return a.banCommand(false, &cobra.Command{
		Use:   "ban PEER...",
		Short: "Throw peers out of the mesh",
		Long: `Vote for peers, given by name or nickname, to be thrown out of the mesh. Run it on the
hosts of as many voters as must agree (weft status ipam shows the voters, the number, and
who has voted). A router votes for a ban only if its own operator asked for it, so one
stolen host bans nobody. The host to be banned is a voter like the others: with 3, 4, 5, 6
or 7 voters, 2, 3, 4, 4 or 5 of the others must agree.

The command says how many votes are missing, and waits for them. The vote of this host
holds for ten minutes from the start of the command, also after it has ended; weft unban
takes it back as long as it is not decided. A router that is restarted forgets it.

Within seconds of the decision the peer has no session, link, kernel path or name
anywhere, and its addresses belong to others. It stays out after restarts, also if it
knows the password. Its own weft status says that it is banned. Whoever has the host can make a new key, so change the password of
the mesh too (weft rotate).`,
		Args: atLeast(1, "name at least one peer to ban"),
	})
}

func (a *app) unban() *cobra.Command {
	return a.banCommand(true, &cobra.Command{
		Use:   "unban PEER...",
		Short: "Let banned peers into the mesh again",
		Long: `Vote for the ban of peers, given by name or nickname, to end. As for weft ban, the operators of as
many voters as must agree run it. If a ban is not decided yet, take back the vote of this
host for it; in the same way weft ban takes back a vote for the end of a ban.`,
		Args: atLeast(1, "name at least one peer"),
	})
}

// voting is a call of weft ban or weft unban.
type voting struct {
	client         *api.Client
	stdout         io.Writer
	request        api.BanRequest
	timeout, every time.Duration
}

func (a *app) banCommand(unban bool, c *cobra.Command) *cobra.Command {
	v := voting{every: time.Second / 2, request: api.BanRequest{Unban: unban}}
	c.RunE = func(c *cobra.Command, args []string) error {
		if v.timeout < 0 {
			return usagef("%s: --timeout %v: want 0 or more", c.CommandPath(), v.timeout)
		}
		v.client, v.stdout, v.request.Peers = a.client(), a.stdout, args
		return v.run(c.Context())
	}
	c.Flags().DurationVar(&v.timeout, "timeout", 10*time.Minute, "how long to wait for the decision, at most as long as the vote holds; the exit code is 1 if there is none. 0 only votes")
	return c
}

func (v *voting) run(ctx context.Context) error {
	votes, err := v.client.Ban(ctx, v.request)
	if err != nil {
		return err
	}
	// The names, as a nickname stands for nobody once its peer is banned.
	look := api.BanRequest{Unban: v.request.Unban, Look: true}
	var waiting []api.Vote
	for _, vote := range votes {
		if vote.TakenBack {
			render.Fprintf(v.stdout, "The vote of this host for the %s is taken back.\n", vote.Subject())
			continue
		}
		look.Peers = append(look.Peers, vote.Peer)
		waiting = append(waiting, vote)
	}
	shown := make(map[string]string) // by peer
	show := func() (done bool) {
		done = true
		for i := range waiting {
			vote := &waiting[i]
			text := vote.Count()
			switch {
			case vote.Decided && vote.Kind == api.VoteUnban:
				text = vote.Who() + " may be in the mesh again."
			case vote.Decided:
				text = vote.Who() + " is banned."
			default:
				done = false
			}
			if text != shown[vote.Peer] {
				shown[vote.Peer] = text
				render.Fprintln(v.stdout, text)
			}
		}
		return done
	}
	if show() || v.timeout == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, v.timeout)
	defer cancel()
	tick := time.NewTicker(v.every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return undecided(waiting)
		case <-tick.C:
		}
		now, err := v.client.Ban(ctx, look)
		switch {
		case ctx.Err() != nil:
			return undecided(waiting)
		case err != nil:
			return err
		}
		for i := range now {
			now[i].NickName = cmp.Or(now[i].NickName, waiting[i].NickName)
		}
		waiting = now
		if show() {
			return nil
		}
		for i := range waiting {
			if vote := &waiting[i]; !vote.Decided && vote.Until.IsZero() {
				return fmt.Errorf("%s: the vote of this host has ended, or was taken back", vote.Subject())
			}
		}
	}
}

// undecided says what becomes of votes for which nobody waits any more.
func undecided(votes []api.Vote) error {
	var texts []string
	for i := range votes {
		if !votes[i].Decided {
			texts = append(texts, "not decided: "+votes[i].Text())
		}
	}
	return errors.New(strings.Join(texts, "; "))
}
