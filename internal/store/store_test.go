package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"
)

func mustOpen(t *testing.T, path string) *Store {
	t.Helper()
	s, aside, err := Open(path)
	if err != nil || aside != "" {
		t.Fatalf("open: %v, set aside %q", err, aside)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestWritesSurviveReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	s := mustOpen(t, path)
	if err := s.Apply([]Write{{"a", []byte("k"), []byte("v")}, {"a", []byte("e"), []byte{}}, {"b", []byte("k"), []byte("w")}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Apply([]Write{{"b", []byte("k"), nil}, {"b", []byte("none"), nil}}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	if err := s.Apply(nil); !errors.Is(err, ErrClosed) {
		t.Errorf("write after close: %v", err)
	}
	s = mustOpen(t, path)
	got := map[string]string{}
	if err := s.Load("a", func(k, v []byte) { got[string(k)] = string(v) }); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != "map[e: k:v]" {
		t.Errorf("loaded %v", got)
	}
	if v, err := s.Get("b", []byte("k")); v != nil || err != nil {
		t.Errorf("deleted key reads %q, %v", v, err)
	}
	if v, err := s.Get("a", []byte("e")); v == nil || len(v) != 0 || err != nil {
		t.Errorf("empty value reads %v, %v", v, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestIsEmpty(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "state"))
	for _, step := range []struct {
		value []byte
		empty bool
	}{{nil, true}, {[]byte{}, false}, {nil, true}} {
		if err := s.Apply([]Write{{"a", []byte("k"), step.value}}); err != nil {
			t.Fatal(err)
		}
		if empty, err := s.IsEmpty(); empty != step.empty || err != nil {
			t.Errorf("with the value %v it is empty %v, %v", step.value, empty, err)
		}
	}
}

func TestSecondOpenFailsWithErrLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	mustOpen(t, path)
	if _, aside, err := Open(path); !errors.Is(err, ErrLocked) || aside != "" {
		t.Errorf("second open: %v, set aside %q", err, aside)
	}
}

// A file that is damaged in any one place either opens, without the damaged values, or
// is set aside. It causes no crash and no wrong value.
func TestDamagedFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "good")
	s := mustOpen(t, path)
	for i := range 20 {
		if err := s.Apply([]Write{{"a", fmt.Appendf(nil, "k%02d", i), bytes.Repeat([]byte{byte(i)}, 300)}}); err != nil {
			t.Fatal(err)
		}
	}
	_ = s.Close()
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string][]byte{
		"text":    []byte("this is no database"),
		"zeros":   make([]byte, 64<<10),
		"half":    good[:len(good)/2],
		"quarter": good[:len(good)/4],
		"pages3":  good[:3*os.Getpagesize()],
	}
	for at := 0; at < len(good); at += 509 {
		bad := bytes.Clone(good)
		for i := at; i < min(at+64, len(bad)); i++ {
			bad[i] ^= 0x5a
		}
		cases[fmt.Sprintf("at%d", at)] = bad
	}
	setAside := 0
	for name, content := range cases {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		s, aside, err := Open(path)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if aside != "" {
			setAside++
			if kept, err := os.ReadFile(aside); err != nil || !bytes.Equal(kept, content) {
				t.Errorf("%s: the file that was set aside differs: %v", name, err)
			}
		}
		_ = s.Load("a", func(k, v []byte) {
			var i int
			if _, err := fmt.Sscanf(string(k), "k%02d", &i); err != nil || !bytes.Equal(v, bytes.Repeat([]byte{byte(i)}, 300)) {
				t.Errorf("%s: key %q has a wrong value", name, k)
			}
		})
		if err := s.Apply([]Write{{"a", []byte("new"), []byte("x")}}); err != nil {
			t.Errorf("%s: write after repair: %v", name, err)
		}
		_ = s.Close()
	}
	if setAside < 4 {
		t.Errorf("only %d files set aside", setAside)
	}
}

func TestValueUnderWrongKeyIsReported(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "state"))
	if err := s.Apply([]Write{{"a", []byte("k"), []byte("v")}, {"a", []byte("l"), []byte("w")}}); err != nil {
		t.Fatal(err)
	}
	err := s.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("a"))
		return b.Put([]byte("l"), b.Get([]byte("k")))
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get("a", []byte("l")); !errors.Is(err, errDamaged) {
		t.Errorf("swapped value: %v", err)
	}
	n := 0
	if err := s.Load("a", func(_, _ []byte) { n++ }); !errors.Is(err, errDamaged) || n != 1 {
		t.Errorf("load: %d values, %v", n, err)
	}
}

func TestSetAsideCounts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for n := 1; n <= 3; n++ {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := SetAside(path, "foreign"); err != nil || got != fmt.Sprintf("%s.foreign-%d", path, n) {
			t.Errorf("set aside as %s, %v", got, err)
		}
	}
}

func FuzzUnseal(f *testing.F) {
	f.Add("b", []byte("k"), seal("b", []byte("k"), []byte("value")))
	f.Add("", []byte{}, []byte{1})
	f.Fuzz(func(t *testing.T, bucket string, key, raw []byte) {
		v, err := unseal(bucket, key, raw)
		if err == nil && !bytes.Equal(seal(bucket, key, v), raw) {
			t.Errorf("%x does not round trip", raw)
		}
	})
}
