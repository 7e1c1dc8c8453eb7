// Package store keeps a router's state on disk: small values with keys in named
// buckets, each with a checksum, changed by atomic batches.
//
// A Store is safe for concurrent use. When Apply returns, its writes are on disk.
// Damage is never fatal, because the mesh knows most of the state too: Open renames a
// file that it cannot use, reports that, and starts a new one. Load omits a value
// whose checksum is wrong and reports it.
//
// A value on disk, integers big-endian:
//
//	 0        1        5
//	+--------+--------+--------
//	| format | crc32c | value ...
//	+--------+--------+--------
//	  1 byte  4 bytes  to the end
//
// Format is 1. The CRC (Castagnoli) covers bucket, a zero byte, key, a zero byte and
// value, so it also detects a value in the wrong place.
package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

const (
	format    = 1
	headerLen = 5
)

// LockTimeout is how long Open waits for another process to close the file.
const LockTimeout = 2 * time.Second

var (
	// ErrLocked is the cause of an error if another process has the file open.
	ErrLocked = errors.New("another process has it open")
	// ErrClosed is the cause of an error if the Store was closed.
	ErrClosed = errors.New("the store is closed")

	errDamaged = errors.New("checksum differs")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Store is an open file. Make one with Open.
type Store struct {
	db   *bolt.DB
	path string
}

// Write is one change of a batch: it stores Value under Key in Bucket, or deletes Key
// if Value is nil.
type Write struct {
	Bucket string
	Key    []byte
	Value  []byte
}

// Open opens the file at path, or makes it with mode 0600 in an existing directory. If
// the file is not a usable store, Open renames it to path.corrupt-N and returns that
// name as aside; the caller should report it to the user.
func Open(path string) (s *Store, aside string, err error) {
	s, err = open(path)
	if err == nil || errors.Is(err, ErrLocked) || !isFile(path) || errors.Is(err, fs.ErrPermission) {
		return s, "", err
	}
	aside, asideErr := SetAside(path, "corrupt")
	if asideErr != nil {
		return nil, "", errors.Join(err, asideErr)
	}
	s, err = open(path)
	return s, aside, err
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// SetAside renames the file at path to path.WHY-N, where N is the first free number,
// and returns that name.
func SetAside(path, why string) (string, error) {
	for n := 1; ; n++ {
		name := fmt.Sprintf("%s.%s-%d", path, why, n)
		// Link, unlike Rename, does not replace an existing file.
		err := os.Link(path, name)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err == nil {
			err = os.Remove(path)
		}
		if err != nil {
			return "", fmt.Errorf("set %s aside as %s: %w", path, name, err)
		}
		return name, nil
	}
}

// open opens the file and checks all of it. Invalid page numbers in it make bolt panic;
// open reports such a file as damaged.
func open(path string) (s *Store, err error) {
	defer func() {
		if r := recover(); r != nil {
			s, err = nil, fmt.Errorf("open state file %s: %v", path, r)
		}
	}()
	if err := precheck(path); err != nil {
		return nil, fmt.Errorf("open state file %s: %w", path, err)
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: LockTimeout, FreelistType: bolt.FreelistMapType})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("open state file %s: waited %v: %w", path, LockTimeout, ErrLocked)
	}
	if err != nil {
		return nil, fmt.Errorf("open state file %s: %w", path, err)
	}
	s = &Store{db: db, path: path}
	defer func() {
		if r := recover(); r != nil {
			_ = db.Close()
			panic(r)
		}
	}()
	err = db.View(func(tx *bolt.Tx) error {
		for cause := range tx.Check() {
			err = errors.Join(err, cause)
		}
		return err
	})
	if err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("open state file %s: %w", path, err)
	}
	return s, nil
}

// precheck detects a truncated file. Bolt's memory map of such a file reaches past its
// end, and a read there kills the process with SIGBUS.
func precheck(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return err
	}
	// A meta page, in the machine's byte order: page header 16, magic 4,
	// version 4, page size 4, flags 4, root 16, freelist 8, high-water page 8.
	var meta [64]byte
	pageSize, high := int64(0), int64(0)
	for _, at := range []int64{0, int64(os.Getpagesize())} {
		if _, err := f.ReadAt(meta[:], at); err != nil {
			return fmt.Errorf("file is truncated: %d bytes", info.Size())
		}
		if binary.NativeEndian.Uint32(meta[16:]) != 0xED0CDAED {
			continue
		}
		pageSize = int64(binary.NativeEndian.Uint32(meta[24:]))
		high = max(high, int64(binary.NativeEndian.Uint64(meta[56:])))
	}
	if pageSize == 0 {
		return errors.New("not a state file")
	}
	if pageSize > 1<<20 || high > info.Size()/pageSize {
		return fmt.Errorf("file is truncated: %d bytes, want %d pages of %d", info.Size(), high, pageSize)
	}
	return nil
}

// Path returns the name of the file.
func (s *Store) Path() string { return s.path }

// Close closes the file. It may be called twice.
func (s *Store) Close() error {
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("close state file %s: %w", s.path, err)
	}
	return nil
}

// Apply writes a batch atomically and returns when it is on disk. It borrows the slices
// of writes until it returns.
func (s *Store) Apply(writes []Write) error {
	err := s.db.Update(func(tx *bolt.Tx) error {
		for _, w := range writes {
			b, err := tx.CreateBucketIfNotExists([]byte(w.Bucket))
			if err != nil {
				return fmt.Errorf("bucket %q: %w", w.Bucket, err)
			}
			if w.Value == nil {
				err = b.Delete(w.Key)
			} else {
				err = b.Put(w.Key, seal(w.Bucket, w.Key, w.Value))
			}
			if err != nil {
				return fmt.Errorf("bucket %q, key %q: %w", w.Bucket, w.Key, err)
			}
		}
		return nil
	})
	return s.wrap("write", err)
}

// Get returns the value under key, nil if there is none, and an error if it is
// damaged.
func (s *Store) Get(bucket string, key []byte) (value []byte, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte(bucket))
		if b == nil {
			return nil
		}
		raw := b.Get(key)
		if raw == nil {
			return nil
		}
		v, err := unseal(bucket, key, raw)
		if err != nil {
			return fmt.Errorf("bucket %q, key %q: %w", bucket, key, err)
		}
		value = append([]byte{}, v...)
		return nil
	})
	return value, s.wrap("read", err)
}

// Load calls f for each key of bucket in byte order, with slices that are borrowed until
// f returns. It omits damaged values and names them in its error.
func (s *Store) Load(bucket string, f func(key, value []byte)) error {
	var damaged []error
	err := s.db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte(bucket))
		if b == nil {
			return nil
		}
		return b.ForEach(func(k, raw []byte) error {
			v, err := unseal(bucket, k, raw)
			if err != nil {
				damaged = append(damaged, fmt.Errorf("bucket %q, key %q: %w", bucket, k, err))
				return nil
			}
			f(k, v)
			return nil
		})
	})
	return s.wrap("read", errors.Join(append(damaged, err)...))
}

// IsEmpty reports whether no bucket has a value.
func (s *Store) IsEmpty() (empty bool, err error) {
	empty = true
	err = s.db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(_ []byte, b *bolt.Bucket) error {
			if key, _ := b.Cursor().First(); key != nil {
				empty = false
			}
			return nil
		})
	})
	return empty, s.wrap("read", err)
}

func (s *Store) wrap(verb string, err error) error {
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		err = ErrClosed
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s state file %s: %w", verb, filepath.Base(s.path), err)
}

func sum(bucket string, key, value []byte) uint32 {
	c := crc32.Update(0, castagnoli, []byte(bucket))
	c = crc32.Update(c, castagnoli, []byte{0})
	c = crc32.Update(c, castagnoli, key)
	c = crc32.Update(c, castagnoli, []byte{0})
	return crc32.Update(c, castagnoli, value)
}

func seal(bucket string, key, value []byte) []byte {
	b := make([]byte, headerLen, headerLen+len(value))
	b[0] = format
	binary.BigEndian.PutUint32(b[1:], sum(bucket, key, value))
	return append(b, value...)
}

func unseal(bucket string, key, raw []byte) ([]byte, error) {
	if len(raw) < headerLen {
		return nil, fmt.Errorf("%d bytes, want at least %d", len(raw), headerLen)
	}
	if raw[0] != format {
		return nil, fmt.Errorf("format %d, want %d", raw[0], format)
	}
	value := raw[headerLen:]
	if binary.BigEndian.Uint32(raw[1:]) != sum(bucket, key, value) {
		return nil, errDamaged
	}
	return value, nil
}
