package cmd

import (
	"testing"
	"time"

	"github.com/weft-net/weft/internal/lab/testbed"
)

// TestOffloadSwitches: every offload has a switch, as a flag and in the
// environment, and peers with and without offloads work together.
func TestOffloadSwitches(t *testing.T) {
	t.Parallel()
	for _, tap := range []bool{false, true} {
		for _, udp := range []bool{false, true} {
			env, flags := map[string]string{}, []string{}
			for name, on := range map[string]bool{"no-tap-offload": tap, "no-udp-offload": udp} {
				if on {
					env[envName(name)], flags = "true", append(flags, "--"+name)
				}
			}
			byEnv, err := parseLaunch(t, env)
			if err != nil {
				t.Fatal(err)
			}
			byFlag, err := parseLaunch(t, nil, flags...)
			if err != nil {
				t.Fatal(err)
			}
			if byEnv.NoTAPOffload != tap || byEnv.NoUDPOffload != udp || byFlag.NoTAPOffload != tap || byFlag.NoUDPOffload != udp {
				t.Errorf("%v, %v: by environment %+v, by flag %+v", env, flags, byEnv, byFlag)
			}
		}
	}

	lab := newLab(t, testbed.Config{Hosts: 3, Topology: testbed.Line})
	const off = "switched off"
	launch(t, lab, 1)
	launch(t, lab, 2, "--no-tap-offload", testbed.Addr4(1).String())
	launch(t, lab, 3, "--no-udp-offload", testbed.Addr4(2).String())
	converge(t, lab)
	for n := 1; n <= 3; n++ {
		got := report(t, lab, n).Router.Offloads
		if (got["tap"] == off) != (n == 2) || (got["udp"] == off) != (n == 3) {
			t.Errorf("h%d has offloads %v", n, got)
		}
	}
	addr := addContainer(t, lab, 3, "c")[0].Addr()
	s, err := startTraffic(t.Context(), lab, at(3, "c"), addr)
	if err != nil {
		t.Fatal(err)
	}
	defer s.stop()
	for n := 1; n <= 2; n++ {
		addContainer(t, lab, n, "c")
		reach(t, lab, at(n, "c"), addr)
		r, err := s.measure(t.Context(), lab, at(n, "c"), 300*time.Millisecond, "--kind", trafficTCP)
		if err != nil || r.BitsPerSecond == 0 {
			t.Errorf("from h%d: %+v: %v", n, r, err)
		}
	}
}
