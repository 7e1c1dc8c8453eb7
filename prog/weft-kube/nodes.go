package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/weft-net/weft/daemon"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/hostfile"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/kube"
)

const (
	// apiTimeout is how long a node that was in the mesh before waits for the API
	// server before it starts without it: pods of the node wait for its router.
	apiTimeout = 3 * time.Second
	// callTimeout is the timeout of one call of the API server.
	callTimeout   = 10 * time.Second
	retryInterval = 2 * time.Second
)

// nodeRecord is a file in the router's state directory with the UID of this host's Node.
type nodeRecord struct{ dir string }

func (s nodeRecord) file() string { return filepath.Join(s.dir, "node-uid") }

// last returns the recorded UID, "" if there is none.
func (s nodeRecord) last() (string, error) {
	b, err := os.ReadFile(s.file())
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(b)), err
}

// record records the UID of this Node.
func (s nodeRecord) record(uid string) error {
	if have, err := s.last(); err == nil && have == uid {
		return nil
	}
	if err := hostfile.Private(s.dir); err != nil {
		return fmt.Errorf("record the UID of this Node: %w", err)
	}
	if err := os.WriteFile(s.file()+".new", []byte(uid+"\n"), 0o600); err != nil {
		return fmt.Errorf("record the UID of this Node: %w", err)
	}
	return os.Rename(s.file()+".new", s.file())
}

// leftover is what the last run of the router has left on the host.
type leftover struct {
	// lives reports whether containers of the router live on the host.
	lives func() (bool, error)
	// erase removes the state, and everything that the router has made in the kernel.
	erase func() error
}

// ofHost returns the leftover of this host.
func ofHost() leftover {
	return leftover{
		lives: func() (bool, error) { return daemon.Lives(netdev.BridgeName) },
		erase: func() error {
			return daemon.Erase(&daemon.Config{Bridge: netdev.BridgeName, StateDir: api.DefaultStateDir, Socket: api.DefaultSocket})
		},
	}
}

// awaitNodes returns all Nodes once the router may start. What it does with the state of the
// last run depends on the API server's Node of this name, and on whether pods live here:
//
//	Node                    pods live             no pod lives
//	------------------------------------------------------------------------
//	that of the last run    goes on               goes on
//	another one             goes on               erases the state
//	none                    goes on               waits for a Node
//	no answer               goes on without a list of Nodes, after apiTimeout
//
// A Node can be deleted and created again while its pods live, with restarts of everything in
// any order. They need the router, and have addresses of its part of the ring. Others leave
// these unused for a time if the router was away meanwhile, see package ipam. Without living
// pods another Node may belong to another cluster, whose ring is another one. And if there is no
// Node and no pod, others take over the addresses.
func awaitNodes(ctx context.Context, s *kube.Settings, client kubernetes.Interface, node nodeRecord, left leftover, log *slog.Logger) ([]*corev1.Node, error) {
	last, err := node.last()
	if err != nil {
		return nil, fmt.Errorf("read the recorded UID of this Node: %w", err)
	}
	for start := time.Now(); ; {
		timeout := callTimeout
		if last != "" {
			timeout = max(0, min(timeout, apiTimeout-time.Since(start)))
		}
		nodes, self, err := list(ctx, client, s.NodeName, timeout)
		switch {
		case err == nil:
			if last != "" && last != self {
				if err := startAgain(s.NodeName, left, log); err != nil {
					return nil, err
				}
			}
			return nodes, node.record(self)
		case errors.Is(err, errNoNode) && last != "":
			lives, err := left.lives()
			if err != nil {
				return nil, err
			}
			if lives {
				log.Warn("this Node was deleted; starting all the same, because pods of it live on this host", "node", s.NodeName)
				return nodes, nil
			}
			start = time.Now() // the API server answers
		case last != "" && time.Since(start) >= apiTimeout:
			log.Warn("the API server does not answer; starting with the peers of the last run", "err", err)
			return nil, nil
		}
		log.Warn("the API server has not answered yet", "err", err)
		wait := retryInterval
		if last != "" {
			wait = max(0, min(wait, apiTimeout-time.Since(start)))
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(wait):
		}
	}
}

// startAgain prepares the host for a Node that is not that of the last run.
func startAgain(name string, left leftover, log *slog.Logger) error {
	lives, err := left.lives()
	if err != nil {
		return err
	}
	if lives {
		log.Info("this Node was deleted and created again since the last run; going on with its state, because pods of it live", "node", name)
		return nil
	}
	log.Info("this Node was deleted and created again since the last run; erasing its state", "node", name)
	return left.erase()
}

// errNoNode is the cause of an error if the API server has no Node of this name.
var errNoNode = errors.New("the API server has no such Node")

// list returns all Nodes and the UID of this one. With errNoNode it returns the other Nodes.
func list(ctx context.Context, client kubernetes.Interface, name string, timeout time.Duration) (nodes []*corev1.Node, self string, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	l, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, "", err
	}
	for i := range l.Items {
		nodes = append(nodes, &l.Items[i])
		if l.Items[i].Name == name {
			self = string(l.Items[i].UID)
		}
	}
	if self == "" {
		return nodes, "", fmt.Errorf("look up Node %s: %w", name, errNoNode)
	}
	return nodes, self, nil
}

// hostSysctls is the parent of the directory where the manifest mounts the node's
// /proc/sys/net.
const hostSysctls netdev.Sysctls = "/host/proc/sys"

// sysctls returns the directory of the node's sysctls.
func sysctls() netdev.Sysctls {
	if _, err := os.Stat(string(hostSysctls)); err == nil {
		return hostSysctls
	}
	return netdev.ProcSys
}

// neighbours is how many neighbours all pods of a node can have together.
const neighbours = 16384

// raiseLimits raises limits of the kernel that are too low for many pods.
func raiseLimits(log *slog.Logger) {
	raised, err := netdev.RaiseNeighbours(sysctls(), neighbours)
	if err != nil {
		log.Warn("connections of pods may fail if they talk to many others", "err", err)
	} else if raised {
		log.Info("raised the kernel's limits of neighbours", "to", neighbours)
	}
}
