// Package poll waits for what nobody tells: the state of other processes and of
// the kernel, in tests.
package poll

import (
	"errors"
	"time"
)

// errNot is what Until returns for a condition without words.
var errFalse = errors.New("not so")

// Until asks f at once and then every so often, until it returns nil or timeout
// is over, and returns its last error.
func Until(timeout, every time.Duration, f func() error) error {
	err := f()
	if err == nil {
		return nil
	}
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err = f(); err == nil {
				return nil
			}
		case <-deadline.C:
			return err
		}
	}
}

// True makes a condition of a bool.
func True(ok func() bool) func() error {
	return func() error {
		if ok() {
			return nil
		}
		return errFalse
	}
}
