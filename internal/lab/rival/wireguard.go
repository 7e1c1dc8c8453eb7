package rival

import (
	"bufio"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/weft-net/weft/internal/lab/testbed"
)

const (
	wireguardPort = 51820
	// wireguardRun is the directory of wireguard-go's control sockets. They are named
	// after interfaces, whatever network namespace those are in.
	wireguardRun = "/var/run/wireguard"
	// wireguardName begins the names of the interfaces.
	wireguardName = "wgb"
)

// WireGuard connects the hosts with wireguard-go, whose program is in dir. The MTU is
// wireguard-go's default, 1420.
func WireGuard(ctx context.Context, lab *testbed.Lab, dir string) (*Network, error) {
	program, err := Program(dir, "wireguard")
	if err != nil {
		return nil, err
	}
	removeStaleSockets()
	var keys [2]*ecdh.PrivateKey
	for i := range keys {
		if keys[i], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			return nil, fmt.Errorf("make a key for wireguard-go: %w", err)
		}
	}
	n := &Network{From: hosts[0], To: hosts[1], Addr: wireguardAddr(1)}
	for i, p := range hosts {
		name := fmt.Sprintf("%s%d-%d", wireguardName, os.Getpid()%1_000_000, p.Host)
		cmd, err := start(lab, p, []string{"LOG_LEVEL=error"}, program, "--foreground", name)
		if err != nil {
			return nil, err
		}
		n.PIDs = append(n.PIDs, cmd.Process.Pid)
		far := 1 - i
		config := fmt.Sprintf("set=1\nprivate_key=%x\nlisten_port=%d\npublic_key=%x\nendpoint=%s\nallowed_ip=%s/32\n\n",
			keys[i].Bytes(), wireguardPort, keys[far].PublicKey().Bytes(),
			netip.AddrPortFrom(testbed.Addr4(hosts[far].Host), wireguardPort), wireguardAddr(far))
		socket := filepath.Join(wireguardRun, name+".sock")
		err = waitFor(ctx, "wireguard-go on "+p.String(), func() bool { return configure(socket, config) == nil })
		if err != nil {
			return nil, errors.Join(err, configure(socket, config))
		}
		if err := setUp(lab, p, name, netip.PrefixFrom(wireguardAddr(i), 24)); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// wireguardAddr returns the overlay address of hosts[i].
func wireguardAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 251, 1, byte(i + 1)}) }

// configure sends a configuration to wireguard-go over its control socket.
func configure(socket, config string) error {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte(config)); err != nil {
		return err
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err
	}
	if answer = strings.TrimSpace(answer); answer != "errno=0" {
		return fmt.Errorf("configure wireguard-go at %s: %s", socket, answer)
	}
	return nil
}

// removeStaleSockets removes control sockets of killed processes of earlier labs.
func removeStaleSockets() {
	found, err := filepath.Glob(filepath.Join(wireguardRun, wireguardName+"*.sock"))
	if err != nil {
		return
	}
	for _, path := range found {
		c, err := net.Dial("unix", path)
		if err == nil {
			c.Close()
			continue
		}
		if !errors.Is(err, fs.ErrNotExist) {
			os.Remove(path)
		}
	}
}
