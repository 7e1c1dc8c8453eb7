package daemon

import (
	"errors"
	"fmt"

	"github.com/weft-net/weft/internal/store"
)

const (
	// keyLayout holds the number of the layout of the state file.
	keyLayout = "layout"
	// stateLayout is the layout that this version reads and writes. A change that gives
	// a bucket, a key or a record another meaning needs another number, or a router
	// would misread what an earlier version wrote and free addresses that are in use.
	stateLayout = "1"
	// lostState says what a router without its earlier state file has lost.
	lostState = "the targets of the last run, names given by users, exposed addresses, and the records of attached containers and Docker's " +
		"networks are lost; running containers keep their addresses until they are attached again and detached"
)

// openState opens or creates the state file at path. A file that is damaged, or that has
// records of another layout, is renamed and never deleted; warnings then tell the user
// what happened.
func openState(path string) (st *store.Store, warnings []string, err error) {
	st, aside, err := store.Open(path)
	if err != nil {
		return nil, nil, err
	}
	if aside != "" {
		warnings = append(warnings, fmt.Sprintf("the state file was damaged and set aside as %s; %s", aside, lostState))
	}
	cause, err := checkLayout(st)
	if err == nil && cause == "" {
		return st, warnings, nil
	}
	if err := errors.Join(err, st.Close()); err != nil {
		return nil, nil, err
	}
	if aside, err = store.SetAside(path, "layout"); err != nil {
		return nil, nil, err
	}
	warnings = append(warnings, fmt.Sprintf("the state file %s and was set aside as %s; %s", cause, aside, lostState))
	if st, _, err = store.Open(path); err != nil {
		return nil, nil, err
	}
	if err := writeLayout(st); err != nil {
		return nil, nil, errors.Join(err, st.Close())
	}
	return st, warnings, nil
}

// checkLayout returns why the records of st cannot be used, "" if they can. It gives an
// empty file its layout number.
func checkLayout(st *store.Store) (cause string, err error) {
	layout, damage := st.Get(bucketDaemon, []byte(keyLayout))
	switch {
	case damage != nil:
		return "has a damaged layout number", nil
	case string(layout) == stateLayout:
		return "", nil
	case layout != nil:
		return fmt.Sprintf("has layout %q, not %q,", layout, stateLayout), nil
	}
	if empty, err := st.IsEmpty(); err != nil || !empty {
		return "has no layout number, as those of earlier versions,", err
	}
	return "", writeLayout(st)
}

func writeLayout(st *store.Store) error {
	err := st.Apply([]store.Write{{Bucket: bucketDaemon, Key: []byte(keyLayout), Value: []byte(stateLayout)}})
	if err != nil {
		return fmt.Errorf("note the layout of the state file: %w", err)
	}
	return nil
}
