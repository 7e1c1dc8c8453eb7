package kube

import (
	"log/slog"
	"strings"
)

// errorLog logs an error that repeats once, and logs when the task succeeds again. Make one with
// newErrorLog. It is for one goroutine.
type errorLog struct {
	log      *slog.Logger
	reported map[string]string
}

func newErrorLog(log *slog.Logger) *errorLog { return &errorLog{log, make(map[string]string)} }

// failed logs the error of a task, unless it was the last error logged for that task. It returns
// the error as one line.
func (f *errorLog) failed(task string, err error) string {
	text := strings.ReplaceAll(err.Error(), "\n", "; ")
	if f.reported[task] != text {
		f.reported[task] = text
		f.log.Warn("a task failed; retrying", "task", task, "err", text)
	}
	return text
}

// succeeded logs that a task succeeded, if its last attempt failed.
func (f *errorLog) succeeded(task string) {
	if f.reported[task] != "" {
		delete(f.reported, task)
		f.log.Info("a task succeeded after errors", "task", task)
	}
}
