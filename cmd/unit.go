package cmd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/pflag"

	"github.com/weft-net/weft/daemon"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/hostfile"
	"github.com/weft-net/weft/internal/process"
	"github.com/weft-net/weft/internal/render"
)

// unitName is the systemd unit of the router, which the packages install.
const unitName = "weft.service"

// unit is the router's systemd unit. Its router is configured by environment files.
// Launch writes the last of them, so the flags of launch override the files of the
// administrator.
type unit struct {
	booted string // a folder that is there where systemd runs the host
	file   string // with the flags of launch
	// run runs a program to its end and returns what it wrote.
	run func(ctx context.Context, program string, args ...string) ([]byte, error)
}

func hostUnit() *unit {
	return &unit{
		booted: "/run/systemd/system", // sd_booted(3)
		file:   filepath.Join(daemon.DefaultStateDir, daemon.LaunchFile),
		run: func(ctx context.Context, program string, args ...string) ([]byte, error) {
			return exec.CommandContext(ctx, program, args...).CombinedOutput()
		},
	}
}

// takes reports whether launch should start the unit: there is one, the router has the
// default places, and no flag contradicts the unit.
func (u *unit) takes(ctx context.Context, f *launchFlags, c *daemon.Config) (bool, error) {
	if f.foreground || f.logFile != "" || c.Socket != api.DefaultSocket || c.StateDir != daemon.DefaultStateDir {
		return false, nil
	}
	state, err := u.state(ctx)
	return state != "", err
}

// state returns the unit's ActiveState. It is empty without systemd, without the unit,
// or if the unit does not read the file that launch writes.
func (u *unit) state(ctx context.Context) (string, error) {
	if _, err := os.Stat(u.booted); err != nil {
		return "", nil
	}
	out, err := u.run(ctx, "systemctl", "show", "--property=LoadState,ActiveState,EnvironmentFiles", unitName)
	if errors.Is(err, exec.ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("ask systemd about %s: %w", unitName, said(out, err))
	}
	var loaded, reads bool
	var active string
	for line := range strings.Lines(string(out)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "LoadState":
			loaded = value == "loaded"
		case "ActiveState":
			active = value
		case "EnvironmentFiles": // one line each, like: /etc/default/weft (ignore_errors=yes)
			file, _, _ := strings.Cut(value, " (")
			reads = reads || file == u.file
		}
	}
	if !loaded || !reads {
		return "", nil
	}
	return active, nil
}

// launch starts the unit with the flags and peers that were given, and returns
// when the router is ready. If it does not become ready everything is as before.
func (u *unit) launch(ctx context.Context, flags *pflag.FlagSet, peers []string, stdout io.Writer) error {
	first, later, err := unitEnv(flags, peers)
	if err != nil {
		return err
	}
	before, err := os.ReadFile(u.file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("launch: %w", err)
	}
	if err := u.write(first); err != nil {
		return err
	}
	since := time.Now()
	if out, err := u.run(ctx, "systemctl", "start", unitName); err != nil {
		// Else systemd would go on trying.
		ctx = context.WithoutCancel(ctx)
		return errors.Join(u.why(ctx, since, said(out, err)), u.stop(ctx), u.restore(before))
	}
	if err := u.write(later); err != nil {
		return err
	}
	render.Fprintf(stdout, "weft runs as %s; its log: journalctl -u weft\n", unitName)
	// The exit code says "disabled" too, so the error is ignored.
	if out, _ := u.run(ctx, "systemctl", "is-enabled", unitName); strings.TrimSpace(string(out)) == "disabled" {
		render.Fprintln(stdout, "to start it after a reboot too: systemctl enable weft")
	}
	return nil
}

// why returns the last error of a router that did not become ready, or that of
// systemctl if the router logged none.
func (u *unit) why(ctx context.Context, since time.Time, failure error) error {
	out, err := u.run(ctx, "journalctl", "--unit", unitName, "--output", "cat", "--no-pager", "--lines", "50",
		fmt.Sprintf("--since=@%d", since.Unix()))
	if err != nil || !bytes.Contains(out, []byte("\nweft: ")) && !bytes.HasPrefix(out, []byte("weft: ")) {
		return fmt.Errorf("start %s: %w; its log: journalctl -u weft", unitName, failure)
	}
	return errors.New(process.LastError(out))
}

// stop stops the unit and keeps systemd from starting it again.
func (u *unit) stop(ctx context.Context) error {
	if out, err := u.run(ctx, "systemctl", "stop", unitName); err != nil {
		return fmt.Errorf("stop %s: %w", unitName, said(out, err))
	}
	return nil
}

// used reports whether the router with that socket is the unit's. It may run, or have
// crashed and be about to be started again.
func (u *unit) used(ctx context.Context, socket string) (bool, error) {
	if socket != api.DefaultSocket {
		return false, nil
	}
	state, err := u.state(ctx)
	return state != "" && state != "inactive" && state != "failed", err
}

// write replaces the file as a whole; it may have a password in it.
func (u *unit) write(text string) error {
	if err := hostfile.Private(filepath.Dir(u.file)); err != nil {
		return fmt.Errorf("launch: state folder: %w", err)
	}
	part := u.file + ".new"
	err := os.WriteFile(part, []byte(text), 0o600)
	if err == nil {
		err = os.Rename(part, u.file)
	}
	if err != nil {
		return fmt.Errorf("launch: write the environment of the unit: %w", err)
	}
	return nil
}

// restore writes the file as it was; nil removes it.
func (u *unit) restore(before []byte) error {
	if before != nil {
		return u.write(string(before))
	}
	if err := os.Remove(u.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("launch: %w", err)
	}
	return nil
}

// unitEnv returns the flags and peers that launch was given as the unit's environment.
// The first one is for the start by launch, which uses these peers only, unless --resume
// is given. The later one is for all other starts, which use the targets that the
// router has stored: a peer that was forgotten stays so over a reboot.
func unitEnv(flags *pflag.FlagSet, peers []string) (first, later string, err error) {
	var b strings.Builder
	b.WriteString("# Written by weft launch, read by " + unitName + ". It overrides\n" +
		"# /etc/default/weft and /etc/sysconfig/weft; the next weft launch replaces it.\n")
	set := func(name, value string) {
		// systemd takes text only, and so do flags.
		if !utf8.ValidString(value) || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r == 0x7f }) {
			err = errors.Join(err, usagef("%s=%q: control characters are not allowed in a systemd environment file", name, value))
		}
		fmt.Fprintf(&b, "%s=%s\n", name, quoteEnv(value))
	}
	flags.VisitAll(func(f *pflag.Flag) {
		if !f.Changed || slices.Contains([]string{"help", "foreground", "socket", "resume"}, f.Name) {
			return
		}
		set(envName(f.Name), envValue(f))
		// This flag overrides the one that it excludes.
		if other := excludes(f.Name); other != "" && !flags.Changed(other) {
			set(envName(other), "")
		}
	})
	later = b.String()
	set(envName("resume"), flags.Lookup("resume").Value.String())
	if len(peers) > 0 {
		set(peersVar, strings.Join(peers, " "))
	}
	return b.String(), later, err
}

// envValue returns the text that setFlag reads as the flag's value.
func envValue(f *pflag.Flag) string {
	list, ok := f.Value.(pflag.SliceValue)
	switch {
	case !ok:
		return f.Value.String()
	case f.Value.Type() == "stringArray":
		return strings.Join(list.GetSlice(), "\n")
	}
	return strings.Join(list.GetSlice(), ",")
}

// quoteEnv quotes a value for a file of EnvironmentFile=, systemd.exec(5), as between
// double quotes in a POSIX shell.
func quoteEnv(value string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "`", "\\`", `$`, `\$`).Replace(value) + `"`
}

// said returns the failure of a program, with the first line that it wrote.
func said(out []byte, err error) error {
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if line == "" {
		return err
	}
	return fmt.Errorf("%s: %w", line, err)
}
