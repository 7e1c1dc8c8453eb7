package api

import (
	"bufio"
	"context"
	"encoding"
	"encoding/json"
	"io"
	"reflect"
	"strconv"
	"strings"

	"github.com/weft-net/weft/internal/render"
)

// streamBuffer is how many bytes of an answer are kept before they are written.
const streamBuffer = 64 << 10

// whileAlive is a writer that fails once ctx has ended.
type whileAlive struct {
	ctx context.Context
	w   io.Writer
}

// Write implements io.Writer.
func (a whileAlive) Write(p []byte) (int, error) {
	if err := a.ctx.Err(); err != nil {
		return 0, err
	}
	return a.w.Write(p)
}

// stream writes v as render.JSON makes it out of json.MarshalIndent, and a line break. It
// holds one element of a list in memory, not the whole text, and stops when ctx ends.
func stream(ctx context.Context, w io.Writer, v any) error {
	out := bufio.NewWriterSize(whileAlive{ctx, w}, streamBuffer)
	e := encoder{out}
	if err := e.value(reflect.ValueOf(v), "\n"); err != nil {
		return err
	}
	out.WriteByte('\n')
	return out.Flush()
}

// indent is that of the API's JSON.
const indent = "    "

type encoder struct{ out *bufio.Writer }

var (
	jsonMarshaler = reflect.TypeFor[json.Marshaler]()
	textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()
)

// value writes v. Newline is a line break with the indentation of v.
func (e encoder) value(v reflect.Value, newline string) error {
	for v.Kind() == reflect.Pointer && !v.IsNil() {
		v = v.Elem()
	}
	t := v.Type()
	custom := t.Implements(jsonMarshaler) || t.Implements(textMarshaler)
	switch {
	case !custom && v.Kind() == reflect.Struct && !embeds(t):
		return e.fields(v, newline)
	case !custom && v.Kind() == reflect.Slice && !v.IsNil() && t.Elem().Kind() != reflect.Uint8:
		return e.elements(v, newline)
	}
	b, err := json.MarshalIndent(v.Interface(), newline[1:], indent)
	if err != nil {
		return err
	}
	_, err = e.out.Write(render.JSON(nil, b))
	return err
}

// embeds reports whether a struct has fields of others as its own, which is left to
// encoding/json.
func embeds(t reflect.Type) bool {
	for i := range t.NumField() {
		if t.Field(i).Anonymous {
			return true
		}
	}
	return false
}

func (e encoder) fields(v reflect.Value, newline string) error {
	e.out.WriteByte('{')
	some := false
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if !f.IsExported() {
			continue
		}
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" || strings.Contains(options, "omitempty") && isEmpty(v.Field(i)) || strings.Contains(options, "omitzero") && v.Field(i).IsZero() {
			continue
		}
		if name == "" {
			name = f.Name
		}
		if some {
			e.out.WriteByte(',')
		}
		some = true
		e.out.WriteString(newline + indent + strconv.Quote(name) + ": ")
		if err := e.value(v.Field(i), newline+indent); err != nil {
			return err
		}
	}
	if some {
		e.out.WriteString(newline)
	}
	return e.out.WriteByte('}')
}

func (e encoder) elements(v reflect.Value, newline string) error {
	e.out.WriteByte('[')
	for i := range v.Len() {
		if i > 0 {
			e.out.WriteByte(',')
		}
		e.out.WriteString(newline + indent)
		if err := e.value(v.Index(i), newline+indent); err != nil {
			return err
		}
	}
	if v.Len() > 0 {
		e.out.WriteString(newline)
	}
	return e.out.WriteByte(']')
}

// isEmpty reports whether encoding/json leaves out a field with the option omitempty.
func isEmpty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Array, reflect.Map, reflect.Slice, reflect.String:
		return v.Len() == 0
	case reflect.Struct:
		return false
	}
	return v.IsZero()
}
