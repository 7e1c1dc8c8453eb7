package render

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"
)

const (
	// lineBurst is how many lines of one message are logged at once, and linesPerSecond how
	// many per second after that.
	lineBurst      = 200
	linesPerSecond = 10
	// maxMessages is the most messages that are counted one by one. Messages are constants
	// of the program.
	maxMessages = 1024
)

// Log returns a logger of lines key=value. Whatever an attribute holds, each record is one
// line of printable text: values that need it are quoted, and each has MaxText characters
// at most. Peers and containers can cause lines as often as they like, so lines of one
// message, except those of level debug, are limited; the next one says how many were
// suppressed.
func Log(w io.Writer, level slog.Leveler) *slog.Logger {
	text := slog.NewTextHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: bounded})
	return slog.New(limited{text, &lines{of: make(map[string]*bucket)}})
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

// limited passes as many records on as lines allows.
type limited struct {
	slog.Handler
	lines *lines
}

// Handle implements slog.Handler.
func (l limited) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelInfo {
		pass, suppressed := l.lines.take(r.Message, r.Time)
		if !pass {
			return nil
		}
		if suppressed > 0 {
			r = r.Clone()
			r.AddAttrs(slog.Int("suppressed", suppressed))
		}
	}
	return l.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (l limited) WithAttrs(attrs []slog.Attr) slog.Handler {
	return limited{l.Handler.WithAttrs(attrs), l.lines}
}

// WithGroup implements slog.Handler.
func (l limited) WithGroup(name string) slog.Handler {
	return limited{l.Handler.WithGroup(name), l.lines}
}

// lines counts the lines of each message.
type lines struct {
	mu sync.Mutex
	of map[string]*bucket // guarded by mu
}

// bucket is a token bucket.
type bucket struct {
	tokens     float64
	last       time.Time
	suppressed int
}

// take reports whether a line may be logged, and how many were not since the last one.
func (l *lines) take(message string, now time.Time) (pass bool, suppressed int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of[message] == nil && len(l.of) >= maxMessages {
		message = "" // all others share one bucket
	}
	b := l.of[message]
	if b == nil {
		b = &bucket{tokens: lineBurst, last: now}
		l.of[message] = b
	}
	b.tokens = min(lineBurst, b.tokens+max(0, now.Sub(b.last).Seconds())*linesPerSecond)
	b.last = now
	if b.tokens < 1 {
		b.suppressed++
		return false, 0
	}
	b.tokens--
	suppressed, b.suppressed = b.suppressed, 0
	return true, suppressed
}
