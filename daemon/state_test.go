package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/store"
)

// writeState writes to the state file at path as another version would.
func writeState(t *testing.T, path string, writes ...store.Write) {
	t.Helper()
	st, _, err := store.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(st.Apply(writes), st.Close()); err != nil {
		t.Fatal(err)
	}
}

// Records of another layout are never read: earlier versions kept Docker's containers in
// the bucket that has those of network namespaces now.
func TestStateOfAnotherLayoutIsSetAside(t *testing.T) {
	record := store.Write{Bucket: bucketNamespaces, Key: []byte(strings.Repeat("c", 64)), Value: []byte(`{"port":"vethwepl1"}`)}
	layout := func(number string) store.Write {
		return store.Write{Bucket: bucketDaemon, Key: []byte(keyLayout), Value: []byte(number)}
	}
	for _, c := range []struct {
		name   string
		writes []store.Write
		want   string // in the warning; empty: the file is used
	}{
		{"new", nil, ""},
		{"no records", []store.Write{{Bucket: bucketNamespaces, Key: []byte("c")}}, ""},
		{"this layout", []store.Write{record, layout(stateLayout)}, ""},
		{"no layout", []store.Write{record}, "has no layout number"},
		{"another layout", []store.Write{record, layout("0")}, `has layout "0", not "1", and was set aside as `},
	} {
		path := filepath.Join(t.TempDir(), storeFile)
		writeState(t, path, c.writes...)
		for _, want := range []string{c.want, ""} { // the second time it has the layout
			st, warnings, err := openState(path)
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			text := strings.Join(warnings, "\n")
			if (text == "") != (want == "") || !strings.Contains(text, want) || strings.Contains(text, "\n") {
				t.Errorf("%s: the warning is %q, want %q", c.name, text, want)
			}
			kept, err := st.Get(record.Bucket, record.Key)
			if wantKept := c.want == "" && len(c.writes) > 1; (kept != nil) != wantKept || err != nil {
				t.Errorf("%s: the record reads %q, %v", c.name, kept, err)
			}
			if err := st.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Stat(path + ".layout-1"); (err == nil) != (c.want != "") {
			t.Errorf("%s: the earlier file: %v", c.name, err)
		}
	}
}

func TestRouterReportsThatItsStateWasSetAside(t *testing.T) {
	r := newTestRouter(t)
	if err := os.MkdirAll(r.config.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	writeState(t, r.config.path(storeFile), store.Write{Bucket: bucketNamespaces, Key: []byte(strings.Repeat("c", 64)), Value: []byte(`{"port":"vethwepl1"}`)})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r.start(ctx, r.node.assemble)
	r.waitReady(t)
	report, err := r.client.Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Attachments) != 0 || !strings.Contains(strings.Join(report.Warnings, "\n"), "set aside as "+r.config.path(storeFile)+".layout-1") {
		t.Errorf("attachments %+v, warnings %q", report.Attachments, report.Warnings)
	}
	cancel()
	if err := <-r.ended; err != nil {
		t.Error(err)
	}
}
