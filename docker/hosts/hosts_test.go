package hosts

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const before = `127.0.0.1	localhost
::1	localhost ip6-localhost
10.9.8.7	db.example
172.17.0.2	web.example web
`

func TestEdit(t *testing.T) {
	own := []netip.Addr{netip.MustParseAddr("10.32.0.5"), netip.MustParseAddr("fd00::5")}
	for _, c := range []struct {
		name    string
		own     []netip.Addr
		entries []string
		want    string
	}{
		{"nothing", nil, nil, before},
		{"own name", own, nil, strings.Replace(before, "172.17.0.2\tweb.example web\n", "10.32.0.5\tweb\nfd00::5\tweb\n", 1)},
		{"added", nil, []string{"cache:10.1.1.1", "v6:fd00::1"}, before + "10.1.1.1\tcache\nfd00::1\tv6\n"},
	} {
		got, err := Edit(before, "web", c.own, c.entries)
		if err != nil || got != c.want {
			t.Errorf("%s: %v, got\n%s\nwant\n%s", c.name, err, got, c.want)
		}
		if again, err := Edit(got, "web", c.own, c.entries); err != nil || again != got {
			t.Errorf("%s, twice: %v, got\n%s", c.name, err, again)
		}
	}
}

// A hosts file is mounted into its container, so it must keep its inode.
func TestRewriteKeepsTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(path, []byte(before), 0o644); err != nil {
		t.Fatal(err)
	}
	first, _ := os.Stat(path)
	if err := Rewrite(path, "web", nil, []string{"a:10.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	second, _ := os.Stat(path)
	if b, _ := os.ReadFile(path); !os.SameFile(first, second) || !strings.HasSuffix(string(b), "10.0.0.1\ta\n") {
		t.Errorf("same file %v, it has\n%s", os.SameFile(first, second), b)
	}
	link := path + "-link"
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if err := Rewrite(link, "web", nil, []string{"b:10.0.0.1"}); err == nil {
		t.Error("a link was followed")
	}
}

func TestEntries(t *testing.T) {
	for _, bad := range []string{"", "a", "a:", ":10.0.0.1", "a b:10.0.0.1", "a:10.0.0", "a\n:10.0.0.1", "a:fe80::1%eth0"} {
		if _, _, err := ParseEntry(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func FuzzEdit(f *testing.F) {
	f.Add(before, "web", "a:10.0.0.1")
	f.Add("\n#\n1.2.3.4 web#x\r\n", "web", "web:1.2.3.4")
	own := []netip.Addr{netip.MustParseAddr("10.32.0.5")}
	f.Fuzz(func(t *testing.T, text, host, entry string) {
		once, err := Edit(text, host, own, []string{entry})
		if err != nil {
			return
		}
		twice, err := Edit(once, host, own, []string{entry})
		if err != nil || once != twice {
			t.Errorf("%v: once %q, twice %q", err, once, twice)
		}
	})
}
