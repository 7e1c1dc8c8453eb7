package keeper_test

import (
	"os"
	"testing"

	"github.com/weft-net/weft/internal/leak"
)

func TestMain(m *testing.M) { os.Exit(leak.Run(m)) }
