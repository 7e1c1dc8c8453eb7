// Package poll waits in tests for conditions that send no notification, such as the
// state of other processes and of the kernel.
package poll

import (
	"errors"
	"time"
)

// errFalse is the error of a condition made by True.
var errFalse = errors.New("the condition is false")

// Until calls f at once and then at each interval, until f returns nil or the timeout
// is over. It returns the last error of f.
func Until(timeout, interval time.Duration, f func() error) error {
	err := f()
	if err == nil {
		return nil
	}
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	tick := time.NewTicker(interval)
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

// True turns a function that returns a bool into a condition.
func True(ok func() bool) func() error {
	return func() error {
		if ok() {
			return nil
		}
		return errFalse
	}
}
