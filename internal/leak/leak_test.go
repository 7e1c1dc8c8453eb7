package leak

import (
	"os"
	"slices"
	"testing"
)

func TestDescriptorsThatAreLeftAreNamed(t *testing.T) {
	before := descriptors()
	f, err := os.CreateTemp(t.TempDir(), "open")
	if err != nil {
		t.Fatal(err)
	}
	if left := newOnes(before, descriptors()); !slices.Equal(left, []string{f.Name()}) {
		t.Errorf("left %q, want %q", left, f.Name())
	}
	f.Close()
	if left := newOnes(before, descriptors()); len(left) != 0 {
		t.Errorf("left %q after it was closed", left)
	}
}

func TestEqualDescriptorsAreCounted(t *testing.T) {
	if left := newOnes([]string{"/dev/null"}, []string{"/dev/null", "/dev/null"}); len(left) != 1 {
		t.Errorf("of two descriptors of one file, one of them new, left is %q", left)
	}
}
