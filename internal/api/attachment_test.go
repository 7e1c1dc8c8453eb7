package api

import (
	"strings"
	"testing"
)

// An error says whose an address is in words, without what only weft understands.
func TestDescribeOwner(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	for owner, want := range map[string]string{
		id: "container 0123456789ab", "cni:weft:" + id + ":eth0": "container 0123456789ab", "cni:weft:sandbox:eth0": "container sandbox",
		"netns:4026532": "the container with network namespace 4026532", Exposed: "the host itself (weft expose)",
		"docker:lease:0123456789abcdef": "Docker", "docker:endpoint:" + id: "Docker", "web": "web",
	} {
		if got := DescribeOwner(owner); got != want {
			t.Errorf("%s: %q, want %q", owner, got, want)
		}
	}
}
