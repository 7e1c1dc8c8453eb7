// Command weft-kube runs weft on a Kubernetes node: the router, and the agent that watches
// the API server. Under the name weft it is the command line program.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/weft-net/weft/cmd"
	"github.com/weft-net/weft/daemon"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/render"
	"github.com/weft-net/weft/internal/version"
	"github.com/weft-net/weft/kube"
	"github.com/weft-net/weft/policy"
)

func main() {
	args := os.Args[1:]
	if filepath.Base(os.Args[0]) == "weft" {
		os.Exit(cmd.Main(args, os.Stdout, os.Stderr))
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	run := agent
	switch {
	case len(args) == 0:
	case len(args) == 1 && args[0] == "uninstall":
		run = uninstall
	default:
		render.Fprintf(os.Stderr, "weft-kube: arguments %q: want none, to run weft on this node, or uninstall\n", args)
		os.Exit(2)
	}
	if err := run(ctx); err != nil {
		render.Fprintln(os.Stderr, "weft-kube:", strings.ReplaceAll(err.Error(), "\n", "; "))
		os.Exit(1)
	}
}

// plugin returns the CNI plugin of the image. The directories are those of the node, where
// the manifest mounts them.
func plugin(hairpin bool) *kube.Plugin {
	return &kube.Plugin{
		Program: "/opt/weft/weft-cni", BinDir: "/host/opt/cni/bin", ConfDir: "/host/etc/cni/net.d", Hairpin: hairpin,
	}
}

// agent runs weft on a node until ctx ends.
func agent(ctx context.Context) error {
	log := render.Log(os.Stderr, slog.LevelInfo)
	log.Info("weft on Kubernetes", "version", version.String())
	s, err := kube.ReadSettings(os.LookupEnv)
	if err != nil {
		return err
	}
	config, err := clientConfig()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make a client for the API server: %w", err)
	}
	node := nodeRecord{dir: api.DefaultStateDir}
	nodes, err := awaitNodes(ctx, s, client, node, ofHost(), log)
	if err != nil {
		return err
	}
	lookup, readPasswords, err := withPassword(ctx, s, client, passwordDir, os.LookupEnv, log)
	if err != nil {
		return err
	}
	router, err := routerConfig(s, nodes, lookup)
	if err != nil {
		return err
	}
	if readPasswords != nil {
		router.ReadPasswords, router.PasswordAdvice = readPasswords, fmt.Sprintf(changeSecret, s.Namespace)
	}
	router.Sysctls = sysctls()
	router.Log = render.Log(os.Stderr, router.LogLevel)
	raiseLimits(log)
	if err := netdev.ShowBridged(router.Bridge); err != nil {
		log.Warn("answers of Services on the same network may be lost", "err", err)
	} else {
		router.Filtered = true
	}
	a := kube.AgentConfig{
		Settings: s, Client: client, Router: api.NewClient(router.Socket), Plugin: plugin(s.Hairpin), Log: log,
		Health: s.HealthAddr(), HealthHosts: router.StatusHosts, RecordUID: node.record,
	}
	if s.Policies {
		metrics := prometheus.NewRegistry()
		if a.Policies, err = newEnforcer(s, metrics, log); err != nil {
			return err
		}
		if s.ClusterPolicies {
			if a.ClusterPolicies, err = kube.ListClusterPolicies(config); err != nil {
				return err
			}
		}
		a.Metrics = promhttp.HandlerFor(metrics, promhttp.HandlerOpts{})
	} else if err := policy.Remove(); err != nil {
		log.Warn("policies that an earlier run enforced may still be in force", "err", err)
	}
	return runTogether(ctx, kube.NewAgent(a), router)
}

// runTogether runs the router and the agent. When one ends, it stops the other.
func runTogether(ctx context.Context, a *kube.Agent, router *daemon.Config) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var g errgroup.Group
	g.Go(func() error { defer cancel(); return daemon.Run(ctx, router) })
	g.Go(func() error { defer cancel(); return a.Run(ctx) })
	return g.Wait()
}

// clientConfig returns the configuration of a client for the API server: that of the pod, or
// the file in KUBECONFIG.
func clientConfig() (*rest.Config, error) {
	var config *rest.Config
	var err error
	if file := os.Getenv("KUBECONFIG"); file != "" {
		config, err = clientcmd.BuildConfigFromFlags("", file)
	} else {
		config, err = rest.InClusterConfig()
	}
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	config.UserAgent = "weft-kube/" + version.String()
	return config, nil
}
