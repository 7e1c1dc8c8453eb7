package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/daemon"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/process"
)

const (
	// launchTimeout is how long a router may take until it is ready.
	launchTimeout = 30 * time.Second
	// pollEvery is how often a router that starts or stops is looked at.
	pollEvery = 50 * time.Millisecond
)

func (a *app) launch() *cobra.Command {
	var f launchFlags
	c := &cobra.Command{
		Use:   "launch [flags] [PEER...]",
		Short: "Start the router of this host",
		Long: `Start the router and join the mesh through any of the given peers, HOST or
HOST:PORT. The router goes on in the background; launch returns when it is
ready. With --foreground it stays, for systemd and containers.

Where systemd runs and a package of weft is installed, launch starts the unit
weft.service with the peers and flags given, which it keeps in
/var/lib/weft/launch.env; they win over /etc/default/weft (/etc/sysconfig/weft).
Not so with --foreground, --log-file, or another --socket or --state-dir.

After a crash, launch goes on with the targets that were there and those given;
after a stop, with those given, or with --resume those that were there. Name,
addresses and attached containers are kept either way.

Where Docker runs, now or later, the router is its network and address driver
weft, makes the network weft there, and serves Docker's API with weft in it; see
weft env. With --docker-api "" it has nothing to do with Docker.

Each flag but --foreground can be given as an environment variable, as
WEFT_PASSWORD for --password, and peers in WEFT_PEERS; the command line wins.`,
		RunE: func(c *cobra.Command, peers []string) error {
			return a.runLaunch(c.Context(), c.Flags(), &f, peers)
		},
	}
	f.register(c.Flags())
	return c
}

func (a *app) runLaunch(ctx context.Context, fs *pflag.FlagSet, f *launchFlags, peers []string) error {
	fromEnv, err := setFromEnv(fs, os.LookupEnv)
	if err != nil {
		return err
	}
	f.envPeers = strings.Fields(os.Getenv(peersVar))
	c, err := f.config(fs, peers, a.socket)
	if err != nil {
		return err
	}
	if err := f.makeAbsolute(); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("launch needs the rights of root; try with sudo")
	}
	ready, err := api.NewClient(c.Socket).Ready(ctx)
	if err == nil {
		return fmt.Errorf("weft runs already on this host, as process %d", ready.PID)
	}
	if !errors.Is(err, api.ErrNotRunning) {
		return err
	}
	if f.foreground {
		c.Log = slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: c.LogLevel}))
		return daemon.Run(ctx, c)
	}
	unit := hostUnit()
	if takes, err := unit.takes(ctx, f, c); err != nil {
		return err
	} else if takes {
		return unit.launch(ctx, fs, c.Peers, a.stdout)
	}
	args := append([]string{"launch", "--foreground", "--socket", c.Socket}, changedArgs(fs, append(fromEnv, "password", "socket", "log-file")...)...)
	args = append(append(args, "--"), peers...)
	env := os.Environ()
	if f.passwords.password != "" {
		env = append(env, "WEFT_PASSWORD="+f.passwords.password)
	}
	if f.logFile == "" {
		f.logFile = filepath.Join(c.StateDir, daemon.LogFile)
	}
	return background(ctx, c, f.logFile, args, env, a.stdout)
}

// changedArgs returns the flags that were given, but for those left out, as
// arguments for another call.
func changedArgs(fs *pflag.FlagSet, without ...string) []string {
	var args []string
	fs.VisitAll(func(f *pflag.Flag) {
		if !f.Changed || slices.Contains(without, f.Name) {
			return
		}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			for _, v := range list.GetSlice() {
				args = append(args, "--"+f.Name+"="+v)
			}
			return
		}
		args = append(args, "--"+f.Name+"="+f.Value.String())
	})
	return args
}

// background starts a router in a session of its own and waits until it is
// ready, or returns its last words.
func background(ctx context.Context, c *daemon.Config, logFile string, args, env []string, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, launchTimeout)
	defer cancel()
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("launch: find the program: %w", err)
	}
	if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
		return fmt.Errorf("launch: make the state folder: %w", err)
	}
	log, err := os.OpenFile(logFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("launch: %w", err)
	}
	defer log.Close()
	from, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("launch: %w", err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env, cmd.Dir = env, "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("launch: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait() // its log says why
		close(ended)
	}()
	client := api.NewClient(c.Socket)
	for {
		if r, err := client.Ready(ctx); err == nil && r.Ready && r.PID == cmd.Process.Pid {
			fmt.Fprintf(stdout, "weft runs as process %d, peer %s\n", r.PID, r.Name)
			return nil
		}
		select {
		case <-ended:
			b, err := os.ReadFile(logFile)
			if err != nil || int64(len(b)) < from {
				return fmt.Errorf("the router ended, and its log %s can not be read", logFile)
			}
			return errors.New(process.LastError(b[from:]))
		case <-ctx.Done():
			cmd.Process.Kill()
			<-ended
			return fmt.Errorf("the router was not ready in %v and is stopped; its log is %s", launchTimeout, logFile)
		case <-time.After(pollEvery):
		}
	}
}
