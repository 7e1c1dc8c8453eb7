package nstest

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ownMachineVar is set where a test is all that runs on a machine, as in make test-vm.
const ownMachineVar = "WEFT_OWN_MACHINE"

// OwnMachine reports whether nobody else uses this machine, so that a test may change what
// namespaces do not separate.
func OwnMachine() bool { return os.Getenv(ownMachineVar) != "" }

// StepClock moves the real-time clock of this machine, as an administrator does or a time daemon
// that finds it wrong. Only for tests that have a machine of their own: all namespaces share the
// clock.
func StepClock(by time.Duration) error {
	if !OwnMachine() {
		return fmt.Errorf("step the clock by %v: others use this machine too, as %s is not set", by, ownMachineVar)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
		return fmt.Errorf("read the clock: %w", err)
	}
	now = unix.NsecToTimespec(now.Nano() + int64(by))
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
		return fmt.Errorf("step the clock by %v: %w", by, err)
	}
	return nil
}
