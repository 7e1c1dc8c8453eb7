package cmd

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/weft-net/weft/daemon"
)

// A state folder that cannot be made is named once.
func TestLaunchNamesTheStateFolderOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := background(t.Context(), &daemon.Config{StateDir: dir}, filepath.Join(t.TempDir(), "log"), nil, nil, io.Discard)
	if want := "launch: state folder: make folder " + dir + ": it is no folder"; err == nil || err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
}
