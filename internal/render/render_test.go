package render

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestTextIsSafe(t *testing.T) {
	for in, want := range map[string]string{
		"":                                 "",
		"host-1":                           "host-1",
		"Zürich 東京":                        "Zürich 東京",
		"\x1b[2J":                          `\x1b[2J`,
		"a\nb\r\tc":                        `a\nb\r\tc`,
		"\x9b31m":                          `\x9b31m`,
		"\u009b31m":                        `\u009b31m`,
		"x\u202etxt.exe":                   `x\u202etxt.exe`,
		"a\u2028b\u2029c\u0085d\u00a0e":    `a\u2028b\u2029c\u0085d\u00a0e`,
		"zero\u200bwidth\ufeff":            `zero\u200bwidth\ufeff`,
		"\u3164":                           `\u3164`,
		"\U000e0041":                       `\U000e0041`,
		"\ufffd":                           "\ufffd",
		"\xff\xfe":                         `\xff\xfe`,
		"back\\slash":                      "back\\slash",
		strings.Repeat("x", MaxText):       strings.Repeat("x", MaxText),
		strings.Repeat("x", MaxText+1):     strings.Repeat("x", MaxText-1) + "…",
		strings.Repeat("é", MaxText):       strings.Repeat("é", MaxText),
		strings.Repeat("\x00", MaxText/4):  strings.Repeat(`\x00`, MaxText/4),
		strings.Repeat("\x00", MaxText+99): strings.Repeat(`\x00`, MaxText/4-1) + "…",
	} {
		if got := Text(in); got != want {
			t.Errorf("Text(%.60q) = %.60q, want %.60q", in, got, want)
		}
	}
	if got, want := Word("h2) up \x07"), `h2)\x20up\x20\x07`; got != want {
		t.Errorf("Word: %q, want %q", got, want)
	}
	if n := utf8.RuneCountInString(Word(strings.Repeat("é", 1000))); n != MaxWord {
		t.Errorf("Word has %d characters", n)
	}
}

func FuzzText(f *testing.F) {
	for _, s := range []string{"", "\x1b[2J", "a\nb", "\u202e", "\xff", strings.Repeat("\u2028", MaxText)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for name, c := range map[string]struct {
			f     func(string) string
			limit int
		}{"Text": {Text, MaxText}, "Word": {Word, MaxWord}} {
			got := c.f(s)
			if n := utf8.RuneCountInString(got); n > c.limit || !utf8.ValidString(got) {
				t.Fatalf("%s(%.100q) has %d characters: %.100q", name, s, n, got)
			}
			for _, r := range got {
				if !printable(r, utf8.RuneLen(r)) || name == "Word" && r == ' ' {
					t.Fatalf("%s(%.100q) holds %q: %.100q", name, s, r, got)
				}
			}
			if again := c.f(got); again != got {
				t.Fatalf("%s(%.100q) = %.100q, and then %.100q", name, s, got, again)
			}
		}
	})
}

type hostileStringer struct{ s string }

func (h hostileStringer) String() string { return h.s }

func TestFormatsEncodeTheirArguments(t *testing.T) {
	var b strings.Builder
	Fprintf(&b, "%s %v %d %5.1f %v %v\t%s\n", "a\nb", errors.New("\x1b[1m"), 7, 1.5, true, []string{"x\ry"}, hostileStringer{"\u202e"})
	Fprintln(&b, "one\ntwo", []byte("z"), nil)
	want := `a\nb \x1b[1m 7   1.5 true [x\ry]` + "\t" + `\u202e` + "\n" + `one\ntwo [122] <nil>` + "\n"
	if b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
	if got := Sprintf("%-4s|", "\x00"); got != `\x00|` {
		t.Errorf("Sprintf: %q", got)
	}
}

func TestWriterEscapes(t *testing.T) {
	in := "line\n\tZürich \x1b[2J\u202e\xff\r\u009b end 東京\n"
	want := "line\n\t" + `Zürich \x1b[2J\u202e\xff\r\u009b end 東京` + "\n"
	for size := 1; size <= len(in); size++ { // characters may come in parts
		var out bytes.Buffer
		w := Writer(&out)
		for rest := in; rest != ""; {
			part := rest[:min(size, len(rest))]
			if n, err := io.WriteString(w, part); n != len(part) || err != nil {
				t.Fatalf("write: %d, %v", n, err)
			}
			rest = rest[len(part):]
		}
		if out.String() != want {
			t.Fatalf("in parts of %d bytes: %q, want %q", size, out.String(), want)
		}
	}
}

func TestJSONKeepsItsMeaning(t *testing.T) {
	in := map[string]string{"k\u009b": "\x1b\u007f\u202e\u2028 東京 \U000e0041"}
	document, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	got := JSON(nil, document)
	for _, r := range string(got) {
		if !printable(r, utf8.RuneLen(r)) {
			t.Errorf("%q holds %q", got, r)
		}
	}
	var out map[string]string
	if err := json.Unmarshal(got, &out); err != nil || !reflect.DeepEqual(in, out) {
		t.Errorf("%s is read as %q, %v; want %q", got, out, err, in)
	}
}

func TestStringsCopiesDeeply(t *testing.T) {
	type inner struct{ S string }
	type outer struct {
		P    *inner
		L    []inner
		M    map[string]string
		N    int
		Nil  *inner
		None []string
	}
	in := outer{P: &inner{"\x1b"}, L: []inner{{"\n"}}, M: map[string]string{"\r": "\x00"}, N: 3}
	want := outer{P: &inner{`\x1b`}, L: []inner{{`\n`}}, M: map[string]string{`\r`: `\x00`}, N: 3}
	if got := Strings(in); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if in.P.S != "\x1b" || in.L[0].S != "\n" {
		t.Error("the original is changed")
	}
}

func TestLogIsOneLineOfPrintableText(t *testing.T) {
	hostile := "a\n\x1b[2J\u202e\u2028\xff\u009b"
	long := strings.Repeat("\n", 3*MaxText)
	var b bytes.Buffer
	log := Log(&b, slog.LevelDebug).With("with", hostile).WithGroup("g")
	log.Info(hostile, hostile, 1, //nolint:sloglint // the message is what is tested
		"err", errors.New(hostile), "v", hostileStringer{hostile}, "list", []string{hostile}, slog.Group("h", "k", hostile))
	log.Debug("long", "err", errors.New(long), "s", long)
	out := b.String()
	if n := strings.Count(out, "\n"); n != 2 {
		t.Errorf("%d lines: %.1000q", n, out)
	}
	for _, r := range strings.ReplaceAll(out, "\n", "") {
		if r == utf8.RuneError || !printable(r, utf8.RuneLen(r)) {
			t.Errorf("the log holds %q", r)
		}
	}
	if len(out) > 6*MaxText {
		t.Errorf("the log has %d bytes", len(out))
	}
	if strings.Contains(out, "level=INFO+") || !strings.Contains(out, "level=DEBUG") {
		t.Errorf("levels are lost: %.200q", out)
	}
}

// Whoever causes a line again and again cannot fill the disk, nor keep other lines out.
func TestLogIsLimited(t *testing.T) {
	var b bytes.Buffer
	h := Log(&b, slog.LevelDebug).Handler().WithAttrs([]slog.Attr{slog.String("k", "v")})
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	log := func(level slog.Level, message string) {
		if err := h.Handle(t.Context(), slog.NewRecord(now, level, message, 0)); err != nil {
			t.Fatal(err)
		}
	}
	for range 100_000 {
		log(slog.LevelWarn, "again")
	}
	log(slog.LevelInfo, "another")
	if n := strings.Count(b.String(), "msg=again"); n != lineBurst || !strings.Contains(b.String(), "msg=another k=v\n") {
		t.Errorf("%d lines of one message; the log ends in %q", n, b.String()[b.Len()-200:])
	}
	b.Reset()
	now = now.Add(time.Second)
	for range 2 * linesPerSecond {
		log(slog.LevelWarn, "again")
	}
	if n := strings.Count(b.String(), "\n"); n != linesPerSecond || !strings.Contains(b.String(), fmt.Sprintf("suppressed=%d\n", 100_000-lineBurst)) {
		t.Errorf("after a second:\n%s", b.String())
	}
	b.Reset()
	for range 10 * lineBurst {
		log(slog.LevelDebug, "again")
	}
	if n := strings.Count(b.String(), "\n"); n != 10*lineBurst {
		t.Errorf("%d of %d lines of level debug", n, 10*lineBurst)
	}
	b.Reset()
	for i := range 10 * maxMessages {
		log(slog.LevelInfo, fmt.Sprint("message ", i))
	}
	if n := strings.Count(b.String(), "\n"); n > maxMessages+lineBurst {
		t.Errorf("%d lines of many different messages", n)
	}
}
