package daemon

import (
	"errors"
	"log/slog"

	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/mesh/peer"
)

// Default is the Assemble of the program.
func Default(*Config, *peer.Identity, *store.Store, *slog.Logger) (*Parts, error) {
	return nil, errors.New("this build has no mesh")
}
