package cni

import (
	"errors"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

func TestParseRefuses(t *testing.T) {
	for text, code := range map[string]uint{
		``:                        types.ErrDecodingFailure,
		`[]`:                      types.ErrDecodingFailure,
		`{"name":"n","ipam":"x"}`: types.ErrDecodingFailure,
		`{"name":"n","prevResult":{"cniVersion":"1.0.0","ips":[null]}}`: types.ErrDecodingFailure,
		`{"name":"n","mtu":70000}`:                                      types.ErrInvalidNetworkConfig,
		`{"ipam":{"subnet":"10.0.0.0/33"}}`:                             types.ErrInvalidNetworkConfig,
		`{"ipam":{"routes":[null]}}`:                                    types.ErrInvalidNetworkConfig,
		`{"runtimeConfig":{"mac":"02:00"}}`:                             types.ErrInvalidNetworkConfig,
		`{"runtimeConfig":{"ips":["10.0"]}}`:                            types.ErrInvalidNetworkConfig,
	} {
		_, err := parse([]byte(text))
		if e := (*types.Error)(nil); !errors.As(err, &e) || e.Code != code {
			t.Errorf("%s: %v, want code %d", text, err, code)
		}
	}
}

func TestOwners(t *testing.T) {
	c, err := parse([]byte(`{"cniVersion":"1.0.0","name":"pods","type":"weft-cni","ipam":{"type":"weft-ipam"}}`))
	if err != nil || !c.usesRouterIPAM() || c.owner("4f2a", "eth0") != "cni:pods:4f2a:eth0" || c.bridge() != "weft" || !isOn(c.HairpinMode) {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err = parse([]byte(`{"ipam":{"type":"host-local"},"hairpinMode":false,"bridge":"b"}`)); err != nil || c.usesRouterIPAM() || isOn(c.HairpinMode) || c.bridge() != "b" {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestAllowSpoof(t *testing.T) {
	for text, want := range map[string]bool{
		`{}`:                   false,
		`{"allowSpoof":true}`:  true,
		`{"allowSpoof":false}`: false,
		`{"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"weft.internal/allow-spoof":"true"}}}`:  true,
		`{"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"weft.internal/allow-spoof":"false"}}}`: false,
		`{"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"example.com/allow-spoof":"true"}}}`:    false,
		`{"annotations":{"weft.internal/allow-spoof":"true"}}`:                                          false,
	} {
		if c, err := parse([]byte(text)); err != nil || c.allowSpoof() != want {
			t.Errorf("%s: %+v, %v, want %v", text, c, err, want)
		}
	}
}

// No configuration makes the parser panic, nor do the addresses and routes of any result
// of another plugin.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","name":"n","type":"weft-cni","ipam":{"routes":[{"dst":"0.0.0.0/0"}]},"runtimeConfig":{"ips":["fd00::1/64"],"mac":"02:00:00:00:00:01"}}`))
	f.Add([]byte(`{"cniVersion":"0.4.0","name":"n","prevResult":{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.1/8","interface":7}]}}`))
	f.Add([]byte(`{"cniVersion":"1.0.0","name":"n","prevResult":{"cniVersion":"1.0.0","interfaces":[null],"ips":[null],"routes":[null]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parse(b)
		if err != nil {
			return
		}
		if r := c.previous; r != nil {
			addrsOf(r)
			routesOf(r)
			ownAddrs(r, "eth0")
		}
	})
}
