package version

import (
	"runtime/debug"
	"testing"
)

func TestReleaseNumber(t *testing.T) {
	defer func(old string) { number = old }(number)
	number = "1.2.3"
	if got := String(); got != "1.2.3" {
		t.Errorf("String() = %q", got)
	}
}

func TestVersionOfUnreleasedBuild(t *testing.T) {
	for _, c := range []struct{ revision, modified, want string }{
		{"", "false", "unreleased"},
		{"0123456789abcdef0123", "false", "unreleased-0123456789ab"},
		{"0123456789abcdef0123", "true", "unreleased-0123456789ab+changes"},
	} {
		info := &debug.BuildInfo{Settings: []debug.BuildSetting{
			{Key: "vcs.revision", Value: c.revision}, {Key: "vcs.modified", Value: c.modified},
		}}
		if got := fromBuildInfo(info); got != c.want {
			t.Errorf("revision %q modified %s: %q, want %q", c.revision, c.modified, got, c.want)
		}
	}
}
