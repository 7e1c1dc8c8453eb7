package testbed

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
)

// Use is the CPU time that a process has used and the memory that it uses.
type Use struct {
	CPU      time.Duration // user and system, all threads, in steps of 10 ms
	Resident uint64        // bytes of memory
}

const (
	// ticksPerSecond is USER_HZ, which is 100 on every architecture that Go
	// runs on.
	ticksPerSecond = 100
	// Fields of /proc/PID/stat, proc_pid_stat(5), counted from 1.
	statState = 3
	statUser  = 14
	statSys   = 15
	statRSS   = 24
)

// Usage reads /proc/PID/stat.
func Usage(pid int) (Use, error) {
	path := "/proc/" + strconv.Itoa(pid) + "/stat"
	b, err := os.ReadFile(path)
	if err != nil {
		return Use{}, fmt.Errorf("measure process %d: %w", pid, err)
	}
	u, err := parseStat(b)
	if err != nil {
		return Use{}, fmt.Errorf("measure process %d: parse %s: %w", pid, path, err)
	}
	return u, nil
}

func parseStat(b []byte) (u Use, err error) {
	// The second field is the program's name in parentheses, which may contain any byte
	// except 0.
	i := bytes.LastIndexByte(b, ')')
	fields := bytes.Fields(b[i+1:])
	if i < 0 || len(fields) <= statRSS-statState {
		return u, errors.New("too few fields")
	}
	for _, f := range []struct {
		at  int
		add func(n uint64)
	}{
		{statUser, func(n uint64) { u.CPU += ticks(n) }},
		{statSys, func(n uint64) { u.CPU += ticks(n) }},
		{statRSS, func(n uint64) { u.Resident = n * uint64(os.Getpagesize()) }},
	} {
		n, err := strconv.ParseUint(string(fields[f.at-statState]), 10, 40)
		if err != nil {
			return u, fmt.Errorf("field %d: %w", f.at, err)
		}
		f.add(n)
	}
	return u, nil
}

func ticks(n uint64) time.Duration { return time.Duration(n) * (time.Second / ticksPerSecond) }
