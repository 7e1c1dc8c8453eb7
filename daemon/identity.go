package daemon

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/weft-net/weft/mesh/peer"
)

// loadIdentity reads the key of this host from path, or makes one there. The
// file has one line, the 32 bytes of the key's seed in hexadecimal. A damaged file is
// an error and stays: a new key would be a new peer, and the addresses of the old peer
// would be lost.
func loadIdentity(path string, random io.Reader) (*peer.Identity, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return makeIdentity(path, random)
	}
	if err != nil {
		return nil, fmt.Errorf("load the identity: %w", err)
	}
	seed, err := parseSeed(b)
	if err != nil {
		return nil, fmt.Errorf("load the identity from %s: %w; put the right file back, or remove it to join as a new peer", path, err)
	}
	return peer.IdentityFromSeed(seed)
}

func parseSeed(b []byte) ([]byte, error) {
	seed := make([]byte, ed25519.SeedSize)
	line := bytes.TrimSuffix(b, []byte("\n"))
	if len(line) != hex.EncodedLen(len(seed)) {
		return nil, fmt.Errorf("it has %d characters, want %d", len(line), hex.EncodedLen(len(seed)))
	}
	if _, err := hex.Decode(seed, line); err != nil {
		return nil, err
	}
	return seed, nil
}

func makeIdentity(path string, random io.Reader) (*peer.Identity, error) {
	id, err := peer.NewIdentity(random)
	if err != nil {
		return nil, err
	}
	if err := writeFile(path, []byte(hex.EncodeToString(id.Seed())+"\n")); err != nil {
		return nil, fmt.Errorf("keep the identity: %w", err)
	}
	return id, nil
}

// writeFile makes a file of mode 0600. After a crash it is either complete or not there.
func writeFile(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, werr := f.Write(b)
	if err := errors.Join(werr, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
