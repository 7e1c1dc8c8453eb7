package kube

import (
	"log/slog"
	"strings"
)

// faults logs what goes wrong again and again once, and once that it is over. It
// is for one goroutine.
type errorLog struct {
	log      *slog.Logger
	reported map[string]string
}

func newErrorLog(log *slog.Logger) *errorLog { return &errorLog{log, make(map[string]string)} }

// say tells, unless it has just told, why what was to be done is not, and returns
// that as one line.
func (f *errorLog) failed(what string, err error) string {
	text := strings.ReplaceAll(err.Error(), "\n", "; ")
	if f.reported[what] != text {
		f.reported[what] = text
		f.log.Warn("not done yet", "what", what, "err", text)
	}
	return text
}

// over tells that it is done, if it was not before.
func (f *errorLog) succeeded(what string) {
	if f.reported[what] != "" {
		delete(f.reported, what)
		f.log.Info("done", "what", what)
	}
}
