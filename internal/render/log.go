package render

import (
	"fmt"
	"io"
	"log/slog"
)

// Log returns a logger of lines key=value. Whatever an attribute holds, each record is one
// line of printable text: values that need it are quoted, and each has MaxText characters
// at most.
func Log(w io.Writer, level slog.Leveler) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: bounded}))
}

// bounded cuts what an attribute or the message holds. The handler quotes it: escapes made
// here would be escaped again.
func bounded(_ []string, a slog.Attr) slog.Attr {
	var text string
	switch a.Value.Kind() {
	case slog.KindString:
		text = a.Value.String()
	case slog.KindAny:
		switch v := a.Value.Any().(type) {
		case *slog.Source, slog.Level:
			return a
		case error:
			text = v.Error()
		default:
			text = fmt.Sprint(v)
		}
	default:
		return a
	}
	return slog.String(a.Key, cut(text))
}

// cut shortens s to MaxText characters or a few less.
func cut(s string) string {
	if len(s) <= MaxText {
		return s
	}
	n := 0
	for i := range s {
		if n++; n >= MaxText {
			return s[:i] + string(ellipsis)
		}
	}
	return s
}
