// Package version returns the version of this build of weft.
package version

import "runtime/debug"

// number is set by the linker: -ldflags "-X .../internal/version.number=1.2.3".
var number string

// String returns the release number. A build without one returns "unreleased", followed
// by the commit if the Go tool recorded it.
func String() string {
	if number != "" {
		return number
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		return fromBuildInfo(info)
	}
	return unreleased
}

const unreleased = "unreleased"

func fromBuildInfo(info *debug.BuildInfo) string {
	var commit, dirty string
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			commit = s.Value
		case "vcs.modified":
			if s.Value == "true" {
				dirty = "+changes"
			}
		}
	}
	if len(commit) < 12 {
		return unreleased
	}
	return unreleased + "-" + commit[:12] + dirty
}
