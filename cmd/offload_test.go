package cmd

import "testing"

// Every offload has a switch, as a flag and in the environment.
func TestOffloadSwitches(t *testing.T) {
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
			if byEnv.Router.NoTAPOffload != tap || byEnv.Router.NoUDPOffload != udp || byFlag.Router.NoTAPOffload != tap || byFlag.Router.NoUDPOffload != udp {
				t.Errorf("%v, %v: by environment %+v, by flag %+v", env, flags, byEnv, byFlag)
			}
		}
	}
}
