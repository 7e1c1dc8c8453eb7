package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/lab/sandbox"
)

const (
	serviceRange = "10.96.0.0/16,fd96::/112"
	firstService = "10.96.0.1" // the API server's
	pollInterval = 200 * time.Millisecond
)

// Config configures a cluster.
type Config struct {
	Programs  string   // directory with the programs of Kubernetes
	ProxyMode string   // of kube-proxy: iptables or nftables
	PodRanges []string // pod addresses for kube-proxy, at most one range per family
	Images    []string // image archives for each node, besides those of pods
}

// Cluster is a running cluster. Its methods are not safe for concurrent use, except for
// Kubectl and Command.
type Cluster struct {
	Config
	Network *sandbox.Network
	Nodes   []*Node

	control *sandbox.Host
	pki     *pki
	api     string // URL
	admin   string // kubeconfig
}

// New makes a cluster without nodes. Close it after use. On error nothing is left.
func New(ctx context.Context, config Config) (*Cluster, error) {
	network, err := sandbox.New()
	if err != nil {
		return nil, err
	}
	c := &Cluster{Config: config, Network: network}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(err, network.Close())
	}
	return c, nil
}

// Close ends the cluster and removes everything that it made.
func (c *Cluster) Close() error { return c.Network.Close() }

func (c *Cluster) start(ctx context.Context) (err error) {
	if c.control, err = c.Network.Add("control"); err != nil {
		return err
	}
	if c.pki, err = newPKI(filepath.Join(c.Network.Dir(), "pki")); err != nil {
		return err
	}
	images, err := c.makeImages(ctx)
	if err != nil {
		return err
	}
	c.Images = append(images, c.Images...)
	c.api = fmt.Sprintf("https://%s:6443", c.control.Addr)
	if err := errors.Join(c.pki.accounts(), c.pki.server("apiserver",
		[]string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"},
		net.ParseIP(firstService), net.IPv4(127, 0, 0, 1), c.control.Addr.AsSlice(),
	)); err != nil {
		return err
	}
	if c.admin, err = c.pki.user("admin", c.api, "admin", "system:masters"); err != nil {
		return err
	}
	if _, err := c.pki.user("to-kubelets", c.api, "kube-apiserver", "system:masters"); err != nil {
		return err
	}
	if err := c.startAPI(); err != nil {
		return err
	}
	if err := c.awaitAPI(ctx); err != nil {
		return err
	}
	return c.startControllers()
}

func (c *Cluster) awaitAPI(ctx context.Context) error {
	return c.WaitUntil(ctx, "the API server is ready", func() error {
		_, err := c.Kubectl(ctx, nil, "get", "--raw", "/readyz")
		return err
	})
}

// StopAPI kills the API server.
func (c *Cluster) StopAPI(ctx context.Context) error {
	return c.stopProgram(ctx, c.control, apiServer)
}

// RestartAPI starts the API server after StopAPI, and waits until it is ready.
func (c *Cluster) RestartAPI(ctx context.Context) error {
	if err := c.startServer(); err != nil {
		return err
	}
	return c.awaitAPI(ctx)
}

// StopControllers kills the controllers, which among others delete the pods of a Node that has
// been gone for forty seconds.
func (c *Cluster) StopControllers(ctx context.Context) error {
	return c.stopProgram(ctx, c.control, controllers)
}

// RestartControllers starts the controllers after StopControllers.
func (c *Cluster) RestartControllers() error { return c.startController(controllers) }

func (c *Cluster) startAPI() error {
	if err := c.startProgram(c.control, "etcd", "etcd", "--data-dir=/var/lib/etcd", "--log-level=warn", "--unsafe-no-fsync",
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380"); err != nil {
		return err
	}
	return c.startServer()
}

func (c *Cluster) startServer() error {
	f := c.pki.file
	return c.startProgram(c.control, apiServer, c.program("kube-apiserver"), "--etcd-servers=http://127.0.0.1:2379",
		"--advertise-address="+c.control.Addr.String(), "--service-cluster-ip-range="+serviceRange,
		"--allow-privileged=true", "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--client-ca-file="+f("authority.crt"), "--tls-cert-file="+f("apiserver.crt"), "--tls-private-key-file="+f("apiserver.key"),
		"--kubelet-client-certificate="+f("to-kubelets.crt"), "--kubelet-client-key="+f("to-kubelets.key"),
		"--kubelet-preferred-address-types=InternalIP", "--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+f("accounts.pub"), "--service-account-signing-key-file="+f("accounts.key"))
}

// Programs of the control host.
const (
	apiServer   = "apiserver"
	controllers = "kube-controller-manager"
	scheduler   = "kube-scheduler"
)

func (c *Cluster) startControllers() error {
	for _, name := range []string{controllers, scheduler} {
		if _, err := c.pki.user(name, c.api, "system:"+name); err != nil {
			return err
		}
		if err := c.startController(name); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) startController(name string) error {
	f := c.pki.file
	config := f(name + ".kubeconfig")
	args := []string{
		"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config, "--leader-elect=false",
	}
	if name == controllers {
		args = append(args, "--service-account-private-key-file="+f("accounts.key"), "--root-ca-file="+f("authority.crt"),
			"--use-service-account-credentials", "--service-cluster-ip-range="+serviceRange)
	}
	return c.startProgram(c.control, name, c.program(name), args...)
}

func (c *Cluster) program(name string) string { return filepath.Join(c.Programs, name) }

// Log returns the file with the output of a program on a host.
func (c *Cluster) Log(host, name string) string {
	return filepath.Join(c.Network.Dir(), host+"-"+name+".log")
}

// startProgram starts a program on a host. It runs until the host ends.
func (c *Cluster) startProgram(h *sandbox.Host, name, program string, args ...string) error {
	log, err := os.OpenFile(c.Log(h.Name, name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := h.Command(context.Background(), "sh", append([]string{"-c", `echo $$ >"$0"; exec "$@"`, pidFile(name), program}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s on %s: %w", name, h.Name, err)
	}
	go cmd.Wait() // its log says why
	return nil
}

// pidFile returns the file with the number of a program in its host's PID namespace.
func pidFile(name string) string { return "/run/" + name + ".program" }

// stopProgram kills a program of startProgram, and waits until it has ended. What it started
// lives on.
func (c *Cluster) stopProgram(ctx context.Context, h *sandbox.Host, name string) error {
	_, err := h.Run(ctx, "sh", "-ec", `pid=$(cat "$0"); kill -9 $pid; while kill -0 $pid 2>/dev/null; do sleep 0.1; done`, pidFile(name))
	if err != nil {
		return fmt.Errorf("stop %s on %s: %w", name, h.Name, err)
	}
	return nil
}

// Command prepares a command on the host of the API server. KUBECONFIG gives it the rights
// of the administrator.
func (c *Cluster) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := c.control.Command(ctx, program, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.admin)
	return cmd
}

// Kubectl runs kubectl as administrator and returns its standard output.
func (c *Cluster) Kubectl(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	cmd := c.Command(ctx, c.program("kubectl"), args...)
	var words strings.Builder
	cmd.Stdin, cmd.Stderr = stdin, &words
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(words.String()))
	}
	return string(out), err
}

// WaitUntil waits until a condition holds. If ctx ends first, the error has the last error
// of the condition.
func (c *Cluster) WaitUntil(ctx context.Context, what string, holds func() error) error {
	for {
		err := holds()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w; last error: %w", what, ctx.Err(), err)
		case <-time.After(pollInterval):
		}
	}
}
