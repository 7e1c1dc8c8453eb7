package repair

import (
	"testing"

	"github.com/weft-net/weft/e2e/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
