package proxy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// document is a JSON object of which some parts are read and changed, and all
// others, known or not, stay as they came.
type document map[string]json.RawMessage

// parseDocument reads an object. An empty or null one is an object without
// parts.
func parseDocument(b []byte) (document, error) {
	d := document{}
	if len(bytes.TrimSpace(b)) == 0 {
		return d, nil
	}
	if err := json.Unmarshal(b, &d); err != nil {
		return nil, err
	}
	if d == nil {
		d = document{}
	}
	return d, nil
}

// key finds a key as the engine does: exactly, else in whatever case.
func (d document) key(name string) string {
	if _, ok := d[name]; ok {
		return name
	}
	for k := range d {
		if strings.EqualFold(k, name) {
			return k
		}
	}
	return name
}

// get reads a part into v, which stays as it is where there is none.
func (d document) get(name string, v any) error {
	raw, ok := d[d.key(name)]
	if !ok {
		return nil
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// set changes a part.
func (d document) set(name string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	d[d.key(name)] = raw
	return nil
}

// object returns a part that is an object, an empty one where there is none.
func (d document) object(name string) (document, error) {
	part, err := parseDocument(d[d.key(name)])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return part, nil
}
