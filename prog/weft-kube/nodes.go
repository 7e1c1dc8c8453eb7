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
	// server before it starts without it.
	apiTimeout    = 30 * time.Second
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

// awaitNodes returns all Nodes once the API server knows this one. If this Node was deleted
// and created again since the last run, other nodes have taken over its addresses, so
// awaitNodes erases the state of the router. If the API server does not answer, a node that
// was in the mesh before starts without a list of Nodes. While the API server has no such
// Node, awaitNodes waits, so that other nodes can take over the addresses of this one.
func awaitNodes(ctx context.Context, s *kube.Settings, client kubernetes.Interface, node nodeRecord, log *slog.Logger) ([]*corev1.Node, error) {
	last, err := node.last()
	if err != nil {
		return nil, fmt.Errorf("read the recorded UID of this Node: %w", err)
	}
	for start := time.Now(); ; {
		nodes, self, err := list(ctx, client, s.NodeName)
		if err == nil {
			if last != "" && last != self {
				log.Info("this Node was deleted and created again since the last run; erasing its state", "node", s.NodeName)
				c := &daemon.Config{Bridge: netdev.BridgeName, StateDir: api.DefaultStateDir, Socket: api.DefaultSocket}
				if err := daemon.Erase(c); err != nil {
					return nil, err
				}
			}
			return nodes, node.record(self)
		}
		if last != "" && time.Since(start) > apiTimeout && !errors.Is(err, errNoNode) {
			log.Warn("the API server does not answer; starting with the peers of the last run", "err", err)
			return nil, nil
		}
		log.Warn("the API server has not answered yet", "err", err)
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(retryInterval):
		}
	}
}

// errNoNode is the cause of an error if the API server has no Node of this name.
var errNoNode = errors.New("the API server has no such Node")

// list returns all Nodes and the UID of this one.
func list(ctx context.Context, client kubernetes.Interface, name string) (nodes []*corev1.Node, self string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
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
		return nil, "", fmt.Errorf("look up Node %s: %w", name, errNoNode)
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
