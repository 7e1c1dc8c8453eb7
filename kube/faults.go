package kube

import (
	"log/slog"
	"strings"
)

// faults logs what goes wrong again and again once, and once that it is over. It
// is for one goroutine.
type faults struct {
	log  *slog.Logger
	said map[string]string
}

func newFaults(log *slog.Logger) *faults { return &faults{log, make(map[string]string)} }

// say tells, unless it has just told, why what was to be done is not, and returns
// that as one line.
func (f *faults) say(what string, err error) string {
	text := strings.ReplaceAll(err.Error(), "\n", "; ")
	if f.said[what] != text {
		f.said[what] = text
		f.log.Warn("not done yet", "what", what, "err", text)
	}
	return text
}

// over tells that it is done, if it was not before.
func (f *faults) over(what string) {
	if f.said[what] != "" {
		delete(f.said, what)
		f.log.Info("done", "what", what)
	}
}
