package kernel

import (
	"strings"
	"testing"

	"github.com/cilium/ebpf/asm"

	"github.com/weft-net/weft/internal/netdev/nstest"
)

// TestTryExpress tries the programs, and some that pass frames on as those do
// whose kernel refuses a step.
func TestTryExpress(t *testing.T) {
	ns := nstest.New(t, "trial")
	for _, broken := range []string{"", bpfProgFromContainer, bpfProgFromUnderlay} {
		spec, err := loadBpf()
		if err != nil {
			t.Fatal(err)
		}
		if p := spec.Programs[broken]; p != nil {
			p.Instructions = asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}
		}
		var got error
		in(t, ns, func() error { got = tryExpress(spec); return nil })
		if (got == nil) != (broken == "") || got != nil && !strings.Contains(got.Error(), broken) {
			t.Errorf("with %q broken: %v", broken, got)
		}
	}
}
