package cmd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/daemon"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/count"
	"github.com/weft-net/weft/internal/render"
)

// rotation is a call of weft rotate.
type rotation struct {
	client         *api.Client
	stdin          io.Reader
	stdout         io.Writer
	raw            io.Writer // for the password as it is
	status, show   bool
	yes, goOn      bool
	file           string
	except, with   []string
	timeout, every time.Duration
}

func (a *app) rotate() *cobra.Command {
	r := rotation{every: time.Second}
	c := &cobra.Command{
		Use:   "rotate",
		Short: "Change the password of the mesh on all hosts",
		Long: `Make a new password, or take that of --password-file, and give it to all hosts over the
mesh. First show who gets it, and ask. Then each host takes three steps by itself: it
accepts the new password, it uses it once all hosts accept it, and it drops the old one
once all hosts use it. No link is lost, and the command may be interrupted: the change
goes on without it. Run it on a host that has a vote (weft status ipam).

The old password stays valid until all hosts that own addresses have followed. A host
that is away holds the change up until it is back, or is removed with weft rmpeer. To
throw a host out, ban it first (weft ban). A host that is away and owns no addresses is
not waited for; it needs the new password by hand.

Run the command again on the same host to include hosts that have come since, or with
--continue on another one. If a banned host may know the new password, another one is
made. Files and units with the old password keep working on these hosts; hosts that join
later need the new one, which --show prints.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			r.client, r.stdin, r.stdout, r.raw = a.client(), c.InOrStdin(), a.stdout, a.rawOut
			changes := r.yes || r.goOn || r.file != "" || len(r.except)+len(r.with) > 0
			if r.status && r.show || (r.status || r.show) && changes {
				return usagef("%s: --status and --show change nothing, and go with no other flag", c.CommandPath())
			}
			if r.goOn && r.file != "" {
				return usagef("%s: --continue goes on with the password of the change; it excludes --password-file", c.CommandPath())
			}
			if r.timeout < 0 {
				return usagef("%s: --timeout %v: want 0 or more", c.CommandPath(), r.timeout)
			}
			return r.run(c.Context())
		},
	}
	fs := c.Flags()
	fs.BoolVar(&r.status, "status", false, "show how far the change is, and the fingerprint of the password, and change nothing")
	fs.BoolVar(&r.show, "show", false, "print the password that this host uses, and change nothing")
	fs.BoolVar(&r.yes, "yes", false, "do not ask")
	fs.StringVar(&r.file, "password-file", "", "file with the new password in its first line; without it one is generated")
	fs.BoolVar(&r.goOn, "continue", false, "go on with a change that another host began, for example because that host died")
	fs.StringSliceVar(&r.except, "except", nil, "hosts that do not get the password (repeatable)")
	fs.StringSliceVar(&r.with, "with", nil, "hosts that get the password although they may be banned ones under another name (repeatable)")
	fs.DurationVar(&r.timeout, "timeout", 2*time.Minute, "how long to wait until all hosts have followed; the exit code is 1 if some have not, and the change goes on. 0 does not wait")
	return c
}

func (r *rotation) run(ctx context.Context) error {
	if r.show {
		password, err := r.client.Password(ctx)
		if err != nil {
			return err
		}
		_, err = r.raw.Write(append(password, '\n'))
		return err
	}
	s, err := r.client.Rotation(ctx)
	if err != nil {
		return err
	}
	if r.status {
		printRotation(r.stdout, &s)
		return nil
	}
	q := api.RotateRequest{Continue: r.goOn}
	if r.file != "" {
		list, err := readPasswords(r.file)
		if err != nil {
			return err
		}
		if err := daemon.CheckPasswords(list[:1]); err != nil {
			return fmt.Errorf("%s: %w", r.file, err)
		}
		q.Password = []byte(list[0])
	}
	if r.goOn && !s.Resumable {
		return errors.New("there is no change that can go on: none is under way, or a banned host may know its password")
	}
	if !s.Voter {
		return errors.New("this host has no vote; run the command on one that has ('weft status ipam' shows the voters; if there are none, run 'weft prime')")
	}
	if q.Peers, err = r.plan(&s); err != nil {
		return err
	}
	if !r.yes {
		render.Fprintf(r.stdout, "Type yes to go on: ")
		answer, err := bufio.NewReader(io.LimitReader(r.stdin, 100)).ReadString('\n')
		if strings.TrimSpace(answer) != "yes" {
			return errors.Join(errors.New("nothing was changed, as the answer was not yes"), ignoreEOF(err))
		}
	}
	if s, err = r.client.Rotate(ctx, q); err != nil {
		return err
	}
	return r.follow(ctx, &s)
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// plan shows what the change would do, and returns the names of the peers that get the
// password.
func (r *rotation) plan(s *api.Rotation) (names []string, err error) {
	used := make(map[string]bool) // of the lists
	in := func(list []string, p *api.RotationPeer) bool {
		for _, n := range list {
			if n == p.Peer || n == p.NickName {
				used[n] = true
				return true
			}
		}
		return false
	}
	var get, away, out []string
	for _, p := range s.Peers {
		switch except, with := in(r.except, &p), in(r.with, &p); {
		case except && p.Needed:
			out = append(out, nameOf(&p)+": as you said; the old password stays valid until it is banned or removed")
		case except:
			out = append(out, nameOf(&p)+": as you said")
		case !p.Needed && !with:
			out = append(out, nameOf(&p)+": a banned host has its address; --with includes it")
		case s.Bans && p.Reachable && !p.Direct && !with:
			out = append(out, nameOf(&p)+": this host has no session with it, so it may be a banned one under another name; --with includes it")
		default:
			names = append(names, p.Peer)
			get = append(get, nameOf(&p))
			if !p.Reachable {
				away = append(away, nameOf(&p))
			}
		}
	}
	for _, n := range slices.Concat(r.except, r.with) {
		if !used[n] {
			return nil, usagef("no host that can be reached, or owns addresses, has the name or nickname %q", n)
		}
	}
	switch {
	case s.Running && r.file == "" && (s.Own || r.goOn):
		render.Fprintf(r.stdout, "The password is being changed already, by order of %s. These hosts get the new one, too:\n", orderedBy(s))
	case s.Running && s.Ordered:
		render.Fprintf(r.stdout, "The change that %s began is replaced. The mesh gets a new password. These hosts get it, and this one:\n", orderedBy(s))
	default:
		render.Fprintf(r.stdout, "The mesh gets a new password. These hosts get it, and this one:\n")
	}
	for _, n := range get {
		render.Fprintf(r.stdout, "    %s\n", n)
	}
	if len(out) > 0 {
		render.Fprintf(r.stdout, "These do not get it:\n")
		for _, n := range out {
			render.Fprintf(r.stdout, "    %s\n", n)
		}
	}
	if len(away) > 0 {
		render.Fprintf(r.stdout, "Away: %s. The old password stays valid until they are back, or are removed with weft rmpeer.\n", strings.Join(away, ", "))
	}
	return names, nil
}

// orderedBy returns the peer that ordered the change.
func orderedBy(s *api.Rotation) string {
	if s.By == "" {
		return "a host that cannot be reached"
	}
	return s.By
}

func nameOf(p *api.RotationPeer) string {
	if p.NickName == "" {
		return p.Peer
	}
	return fmt.Sprintf("%s(%s)", p.Peer, p.NickName)
}

// follow waits until the change is done, and shows who is behind when that changes.
func (r *rotation) follow(ctx context.Context, s *api.Rotation) error {
	if r.timeout == 0 && !s.Done() {
		render.Fprintln(r.stdout, behindText(s))
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	tick := time.NewTicker(r.every)
	defer tick.Stop()
	shown := ""
	for !s.Done() {
		if text := behindText(s); text != shown {
			shown = text
			render.Fprintln(r.stdout, text)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the change goes on by itself, and is not done: %s; see weft rotate --status", behindText(s))
		case <-tick.C:
		}
		now, err := r.client.Rotation(ctx)
		if err != nil && ctx.Err() == nil {
			return err
		}
		if err == nil {
			s = &now
		}
	}
	render.Fprintf(r.stdout, "Done: this host, and all that own addresses, use the new password. Hosts that join later need it (weft rotate --show).\n")
	return nil
}

func behindText(s *api.Rotation) string {
	behind := s.Behind()
	if len(behind) == 0 {
		return "all hosts use the new password, and some still accept others"
	}
	names := make([]string, 0, len(behind))
	for _, p := range behind[:min(len(behind), maxShownBehind)] {
		names = append(names, nameOf(&p)+" "+p.Step)
	}
	if n := len(behind) - len(names); n > 0 {
		names = append(names, count.Of(n, "other", "others"))
	}
	return count.Of(len(behind), "host has", "hosts have") + " still to follow: " + strings.Join(names, ", ")
}

const maxShownBehind = 5

// printRotation shows the state of a change.
func printRotation(w io.Writer, s *api.Rotation) {
	switch {
	case s.Running && s.Ordered:
		render.Fprintf(w, "The password is being changed to the one with the fingerprint %s, by order of %s at %s.\n", s.Target, orderedBy(s), s.Since.Format(time.DateTime))
	case s.Running:
		render.Fprintf(w, "The password is being changed to the one with the fingerprint %s, which the configuration of this host has.\n", s.Target)
	default:
		render.Fprintf(w, "No change is under way. The password of this host has the fingerprint %s; hosts with the same password show the same one.\n", s.Target)
	}
	render.Fprintf(w, "    %-40s %s\n", "this host", s.Step)
	for _, p := range s.Peers {
		var notes []string
		if !p.Reachable {
			notes = append(notes, "away")
		}
		if s.Running && !p.Named {
			notes = append(notes, "gets no password; run weft rotate again to include it")
		}
		if !p.Needed {
			notes = append(notes, "a banned host has its address, so nobody waits for it")
		}
		text := p.Step
		if len(notes) > 0 {
			text += " (" + strings.Join(notes, "; ") + ")"
		}
		render.Fprintf(w, "    %-40s %s\n", nameOf(&p), text)
	}
	for _, f := range s.Faults {
		render.Fprintf(w, "%s\n", f)
	}
}
