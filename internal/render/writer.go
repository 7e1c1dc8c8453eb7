package render

import (
	"fmt"
	"io"
	"unicode/utf8"
)

// Writer returns a writer that passes printable text, line breaks and tabs on to w, and
// escapes everything else. It cannot tell a line break of the program from one in text of
// others: encode fields before they are put together, as by Fprintf. It is for one
// goroutine at a time.
func Writer(w io.Writer) io.Writer { return &writer{w: w} }

type writer struct {
	w io.Writer
	// begun is the beginning of a character, the rest of which may follow.
	begun []byte
}

// Write implements io.Writer.
func (g *writer) Write(p []byte) (int, error) {
	b := append(g.begun, p...)
	g.begun = nil
	var out []byte
	for i := 0; i < len(b); {
		if !utf8.FullRune(b[i:]) {
			g.begun = append([]byte(nil), b[i:]...)
			break
		}
		r, size := utf8.DecodeRune(b[i:])
		if r == '\n' || r == '\t' || printable(r, size) {
			out = append(out, b[i:i+size]...)
		} else {
			out = append(out, escape(r, size, b[i])...)
		}
		i += size
	}
	if _, err := g.w.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// JSON appends the text of a JSON document to dst, with characters that are not printable
// as \u escapes. The document keeps its meaning: such characters can only be inside of
// strings. encoding/json leaves those above 0x7e as they are.
func JSON(dst, document []byte) []byte {
	for i := 0; i < len(document); {
		r, size := utf8.DecodeRune(document[i:])
		switch {
		case r == '\n' || r == '\t' || printable(r, size):
			dst = append(dst, document[i:i+size]...)
		case r <= 0xffff:
			dst = fmt.Appendf(dst, `\u%04x`, r)
		default: // a pair of surrogates, RFC 8259, 7
			r -= 0x10000
			dst = fmt.Appendf(dst, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		}
		i += size
	}
	return dst
}
