package proxy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// document is a JSON object. Fields that are not set explicitly, known or unknown,
// keep their exact bytes.
type document map[string]json.RawMessage

// parseDocument parses an object. Empty text and null give an empty document.
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

// key returns the key that matches name as the engine matches it: exactly, else
// ignoring case.
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

// get decodes a field into v. A missing field leaves v unchanged.
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

// set sets a field.
func (d document) set(name string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	d[d.key(name)] = raw
	return nil
}

// object returns a field that is an object, an empty one if it is missing.
func (d document) object(name string) (document, error) {
	part, err := parseDocument(d[d.key(name)])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return part, nil
}
