package poll

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestUntil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, asked := time.Now(), 0
		if err := Until(time.Minute, time.Second, True(func() bool { asked++; return asked == 4 })); err != nil || time.Since(start) != 3*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		start = time.Now()
		last := errors.New("still not")
		if err := Until(time.Minute, 7*time.Second, func() error { return last }); !errors.Is(err, last) || time.Since(start) != time.Minute {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		start = time.Now()
		if err := Until(0, time.Second, func() error { return nil }); err != nil || time.Since(start) != 0 {
			t.Errorf("a condition that is true at once took %v: %v", time.Since(start), err)
		}
	})
}
