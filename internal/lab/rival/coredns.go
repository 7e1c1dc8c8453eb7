package rival

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/weft-net/weft/internal/lab/testbed"
)

// CoreDNS starts a CoreDNS on the first host of a lab, at that address, which serves host
// names with its hosts plugin. Dir has its program. It returns the process id once answers
// returns true.
func CoreDNS(ctx context.Context, lab *testbed.Lab, dir string, at netip.AddrPort, hosts map[string]netip.Addr, ttl int, answers func() bool) (pid int, err error) {
	program, err := Program(dir, "coredns")
	if err != nil {
		return 0, err
	}
	p := testbed.Place{Host: 1}
	hostDir := lab.HostDir(p.Host)
	var list strings.Builder
	for name, a := range hosts {
		fmt.Fprintf(&list, "%s %s\n", a, name)
	}
	file, config := filepath.Join(hostDir, "hosts"), filepath.Join(hostDir, "Corefile")
	text := fmt.Sprintf(".:%d {\n    bind %s\n    hosts %s {\n        ttl %d\n    }\n}\n", at.Port(), at.Addr(), file, ttl)
	for path, text := range map[string]string{file: list.String(), config: text} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return 0, fmt.Errorf("configure CoreDNS: %w", err)
		}
	}
	cmd, err := start(lab, p, nil, program, "-conf", config)
	if err != nil {
		return 0, err
	}
	return cmd.Process.Pid, waitFor(ctx, "CoreDNS on "+p.String(), answers)
}
