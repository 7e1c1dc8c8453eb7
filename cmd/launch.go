package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	"github.com/weft-net/weft/internal/hostfile"
	"github.com/weft-net/weft/internal/process"
	"github.com/weft-net/weft/internal/render"
)

const (
	// launchTimeout bounds the start of a router, until it is ready.
	launchTimeout = 30 * time.Second
	// pollEvery is how often a router that starts is asked whether it is ready.
	pollEvery = 50 * time.Millisecond
)

func (a *app) launch() *cobra.Command {
	var f launchFlags
	c := &cobra.Command{
		Use:   "launch [flags] [PEER...]",
		Short: "Start the router of this host",
		Long: `Start the router and join the mesh through any of the given peers, HOST or
HOST:PORT. The router runs in the background; launch returns when it is ready. With
--foreground it stays in the foreground, for systemd and containers.

If systemd runs and a package of weft is installed, launch starts the unit
weft.service. It keeps the given peers and flags in /var/lib/weft/launch.env, which
override /etc/default/weft (/etc/sysconfig/weft). With --foreground, --log-file, or
another --socket or --state-dir, launch does not use the unit.

After a crash, launch uses the targets of the last run and the given peers; after a
stop, only the given peers, or with --resume the targets of the last run. Name,
addresses and attached containers are kept in both cases.

If Docker runs, now or later, the router is its network and address driver weft,
makes the network weft there, and serves Docker's API with weft in it; see weft env.
With --docker-api "" it ignores Docker.

Each flag except --foreground can be given as an environment variable, such as
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
		return errors.New("launch must run as root; try with sudo")
	}
	ready, err := api.NewClient(c.Socket).Ready(ctx)
	if err == nil {
		return fmt.Errorf("weft is already running on this host, as process %d", ready.PID)
	}
	if !errors.Is(err, api.ErrNotRunning) {
		return err
	}
	if !f.foreground {
		for _, text := range c.Warnings {
			render.Fprintln(a.stderr, "weft: "+text)
		}
	}
	if f.foreground {
		c.Log = render.Log(a.rawErr, c.LogLevel)
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

// changedArgs returns the flags that were given, except some, as arguments for another
// call.
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
// ready, or returns the error that it logged last.
func background(ctx context.Context, c *daemon.Config, logFile string, args, env []string, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, launchTimeout)
	defer cancel()
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("launch: find the program: %w", err)
	}
	if err := hostfile.Private(c.StateDir); err != nil {
		return fmt.Errorf("launch: state folder: %w", err)
	}
	log, err := hostfile.Append(logFile)
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
			render.Fprintf(stdout, "weft runs as process %d, peer %s\n", r.PID, r.Name)
			return nil
		}
		select {
		case <-ended:
			b, err := os.ReadFile(logFile)
			if err != nil || int64(len(b)) < from {
				return fmt.Errorf("the router ended, and its log %s cannot be read", logFile)
			}
			return errors.New(process.LastError(b[from:]))
		case <-ctx.Done():
			cmd.Process.Kill()
			<-ended
			return fmt.Errorf("the router was not ready within %v and was stopped; see %s", launchTimeout, logFile)
		case <-time.After(pollEvery):
		}
	}
}
