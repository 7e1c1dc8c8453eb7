package store

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Table is a bucket of JSON records with a copy in memory. It is not safe for
// concurrent use.
type Table[R any] struct {
	store  *Store
	bucket string
	// Records are the records of the bucket by key. Only Put and Delete change them.
	Records map[string]R
}

// OpenTable reads the bucket. It omits damaged records and names them in the error; the
// table is usable even then.
func OpenTable[R any](st *Store, bucket string) (*Table[R], error) {
	t := &Table[R]{store: st, bucket: bucket, Records: make(map[string]R)}
	var errs []error
	err := st.Load(bucket, func(key, value []byte) {
		var r R
		if err := json.Unmarshal(value, &r); err != nil {
			errs = append(errs, fmt.Errorf("read %s from %s: %w", key, bucket, err))
			return
		}
		t.Records[string(key)] = r
	})
	return t, errors.Join(append(errs, err)...)
}

// Put writes a record. It is on disk when Put returns nil.
func (t *Table[R]) Put(key string, r R) error {
	b, err := json.Marshal(r)
	if err == nil {
		err = t.store.Apply([]Write{{Bucket: t.bucket, Key: []byte(key), Value: b}})
	}
	if err != nil {
		return fmt.Errorf("%s in %s: %w", key, t.bucket, err)
	}
	t.Records[key] = r
	return nil
}

// Delete removes a record. A missing record is no error.
func (t *Table[R]) Delete(key string) error {
	if _, there := t.Records[key]; !there {
		return nil
	}
	if err := t.store.Apply([]Write{{Bucket: t.bucket, Key: []byte(key)}}); err != nil {
		return fmt.Errorf("%s in %s: %w", key, t.bucket, err)
	}
	delete(t.Records, key)
	return nil
}
