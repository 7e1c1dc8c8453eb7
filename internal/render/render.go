// Package render makes text that others wrote safe to show.
//
// Peers, containers, Docker and Kubernetes choose names and reasons that weft prints on a
// terminal, in a log and in metrics. Such text may hold control bytes that move the
// cursor, line breaks that fake a line of output, or characters that change the direction
// of writing. The functions here turn it into a bounded part of one line: a character that
// is not printable becomes an escape as in Go, for example \x1b, \n or \u202e, and text
// that is too long ends in an ellipsis. Printable text stays as it is, so applying a
// function twice changes nothing.
//
// Text is encoded where it becomes output: Fprintf and Fprintln encode their arguments,
// Writer is a second line of defence at the end of a program's output, and Log does the
// same for a log. All functions are safe for concurrent use.
package render

import (
	"fmt"
	"io"
	"reflect"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// MaxWord is the most characters of a Word: the longest host name, and the owner of
	// an address with the id of a container, are shorter.
	MaxWord = 256
	// MaxText is the most characters of a Text.
	MaxText = 4096
)

// ellipsis ends text that was cut.
const ellipsis = '…'

// Word returns s as one word: blanks are escaped too, so that a name cannot pass for
// further columns of a table. It has MaxWord characters at most.
func Word(s string) string { return encode(s, MaxWord, false) }

// Text returns s as a part of one line. It has MaxText characters at most.
func Text(s string) string { return encode(s, MaxText, true) }

// Label returns s as the value of a label of a metric: a Text of MaxWord characters at
// most.
func Label(s string) string { return encode(s, MaxWord, true) }

// encode returns s with everything escaped that is not printable, and with limit
// characters at most.
func encode(s string, limit int, blanks bool) string {
	if len(s) <= limit && plain(s, blanks) {
		return s
	}
	var b strings.Builder
	n := 0
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		part := s[i : i+size]
		if !printable(r, size) || !blanks && r == ' ' {
			part = escape(r, size, s[i])
		}
		width := utf8.RuneCountInString(part)
		if n+width >= limit && !(n+width == limit && i+size == len(s)) {
			b.WriteRune(ellipsis)
			break
		}
		b.WriteString(part)
		n += width
		i += size
	}
	return b.String()
}

// plain reports whether s is printable ASCII.
func plain(s string, blanks bool) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == ' ' && !blanks {
			return false
		}
	}
	return true
}

// printable reports whether a character of size bytes may be shown. Characters that are
// letters for Unicode but draw nothing may not.
func printable(r rune, size int) bool {
	switch r {
	case utf8.RuneError:
		return size > 1
	case 0x115f, 0x1160, 0x3164, 0xffa0: // Hangul fillers
		return false
	}
	return unicode.IsPrint(r)
}

// escape returns the escape for a character of size bytes, the first of which is given.
func escape(r rune, size int, first byte) string {
	switch {
	case r == utf8.RuneError && size == 1:
		return fmt.Sprintf(`\x%02x`, first)
	case r == '\n':
		return `\n`
	case r == '\r':
		return `\r`
	case r == '\t':
		return `\t`
	case r < utf8.RuneSelf:
		return fmt.Sprintf(`\x%02x`, r)
	case r <= 0xffff:
		return fmt.Sprintf(`\u%04x`, r)
	}
	return fmt.Sprintf(`\U%08x`, r)
}

// Sprintf is fmt.Sprintf with each argument made a Text. The format is trusted: it must be
// a constant of the program. Numbers and bools stay as they are, everything else is
// formatted as by %v first.
func Sprintf(format string, args ...any) string {
	if false {
		_ = fmt.Sprintf(format, args...) // so that go vet checks the arguments
	}
	return fmt.Sprintf(format, texts(args)...)
}

// Fprintf writes what Sprintf returns.
func Fprintf(w io.Writer, format string, args ...any) {
	if false {
		_ = fmt.Sprintf(format, args...)
	}
	fmt.Fprintf(w, format, texts(args)...)
}

// Fprintln writes a line of the arguments, each made a Text, with blanks between them.
func Fprintln(w io.Writer, args ...any) { fmt.Fprintln(w, texts(args)...) }

// texts returns args with everything encoded that may hold text of others.
func texts(args []any) []any {
	safe := make([]any, len(args))
	for i, a := range args {
		switch reflect.ValueOf(a).Kind() {
		case reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
			reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Float32, reflect.Float64:
			safe[i] = a
		default:
			safe[i] = Text(fmt.Sprint(a))
		}
	}
	return safe
}

// Strings returns a copy of v in which each string is a Text, also in fields that are
// exported, elements, and keys and values of maps. Values with fields that are not
// exported are copied as they are.
func Strings[T any](v T) T {
	var out T
	reflect.ValueOf(&out).Elem().Set(copied(reflect.ValueOf(&v).Elem()))
	return out
}

func copied(v reflect.Value) reflect.Value {
	out := reflect.New(v.Type()).Elem()
	switch v.Kind() {
	case reflect.String:
		out.SetString(Text(v.String()))
	case reflect.Pointer:
		if !v.IsNil() {
			out.Set(reflect.New(v.Type().Elem()))
			out.Elem().Set(copied(v.Elem()))
		}
	case reflect.Struct:
		out.Set(v)
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				out.Field(i).Set(copied(v.Field(i)))
			}
		}
	case reflect.Slice:
		if !v.IsNil() {
			out.Set(reflect.MakeSlice(v.Type(), v.Len(), v.Len()))
			for i := range v.Len() {
				out.Index(i).Set(copied(v.Index(i)))
			}
		}
	case reflect.Map:
		if !v.IsNil() {
			out.Set(reflect.MakeMapWithSize(v.Type(), v.Len()))
			for key, value := range v.Seq2() {
				out.SetMapIndex(copied(key), copied(value))
			}
		}
	default:
		out.Set(v)
	}
	return out
}
