package rival

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
)

const (
	nebulaPort      = 4242
	nebulaInterface = "nebula0"
)

// Nebula connects the hosts with nebula. Dir has the programs nebula and nebula-cert. The
// cipher is AES; everything else is the default, such as the MTU of 1300.
func Nebula(ctx context.Context, lab *testbed.Lab, dir string) (*Network, error) {
	program, err := Program(dir, "nebula")
	if err != nil {
		return nil, err
	}
	signer, err := Program(dir, "nebula-cert")
	if err != nil {
		return nil, err
	}
	hostDir := lab.HostDir(hosts[0].Host)
	cert := func(args ...string) error {
		cmd := exec.CommandContext(ctx, signer, args...)
		cmd.Dir = hostDir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nebula-cert %s: %w: %s", args[0], err, strings.TrimSpace(string(out)))
		}
		return nil
	}
	if err := cert("ca", "-name", "bench"); err != nil {
		return nil, err
	}
	n := &Network{From: hosts[0], To: hosts[1], Addr: nebulaAddr(1)}
	for i, p := range hosts {
		name := p.String()
		if err := cert("sign", "-name", name, "-networks", netip.PrefixFrom(nebulaAddr(i), 24).String()); err != nil {
			return nil, err
		}
		config := filepath.Join(hostDir, "nebula-"+name+".yml")
		if err := os.WriteFile(config, []byte(nebulaConfig(hostDir, i)), 0o600); err != nil {
			return nil, fmt.Errorf("configure nebula: %w", err)
		}
		cmd, err := start(lab, p, nil, program, "-config", config)
		if err != nil {
			return nil, err
		}
		n.PIDs = append(n.PIDs, cmd.Process.Pid)
		err = waitFor(ctx, "nebula on "+name, func() bool {
			return netdev.Do(lab.Netns(p), func() error {
				l, err := netlink.LinkByName(nebulaInterface)
				if err == nil && l.Attrs().Flags&net.FlagUp == 0 {
					err = os.ErrNotExist
				}
				return err
			}) == nil
		})
		if err != nil {
			return nil, err
		}
	}
	return n, nil
}

// nebulaAddr returns the overlay address of hosts[i].
func nebulaAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 252, 1, byte(i + 1)}) }

func nebulaConfig(hostDir string, i int) string {
	name, far := hosts[i].String(), 1-i
	return fmt.Sprintf(`
pki:
  ca: %[1]s/ca.crt
  cert: %[1]s/%[2]s.crt
  key: %[1]s/%[2]s.key
static_host_map:
  "%[3]s": ["%[4]s:%[5]d"]
lighthouse:
  am_lighthouse: false
listen:
  host: 0.0.0.0
  port: %[5]d
cipher: aes
tun:
  dev: %[6]s
firewall:
  outbound: [{port: any, proto: any, host: any}]
  inbound: [{port: any, proto: any, host: any}]
`, hostDir, name, nebulaAddr(far), testbed.Addr4(hosts[far].Host), nebulaPort, nebulaInterface)
}
