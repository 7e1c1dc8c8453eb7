package process

import "testing"

func TestLastError(t *testing.T) {
	for log, want := range map[string]string{
		"": "the process ended without an error message",
		"level=INFO msg=a\nweft: the port is taken\n": "the port is taken",
		"weft: old\nlevel=INFO\nweft: new\n\n":        "new",
		"panic: x\n\ngoroutine 1 [running]:\nmain\n":  "main",
	} {
		if got := LastError([]byte(log)); got != want {
			t.Errorf("%q: %q, want %q", log, got, want)
		}
	}
}
