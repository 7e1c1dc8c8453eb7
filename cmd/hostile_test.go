package cmd

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/weft-net/weft/internal/api"
)

// hostile is a name that clears the screen, begins a line of its own, fakes columns and
// turns the direction of writing.
const hostile = "h2\x1b[2J\r\n02:00:00:00:00:09(root)\testablished\u2028\u0085\u009b31m\u202e\xff" + " up"

// reportOf returns a report in which every string is name. Lists keep their lengths.
func reportOf(name string) *api.Report {
	r := someReport()
	rename(reflect.ValueOf(r), name)
	return r
}

func rename(v reflect.Value, name string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(name)
	case reflect.Pointer:
		if !v.IsNil() {
			rename(v.Elem(), name)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				rename(v.Field(i), name)
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			rename(v.Index(i), name)
		}
	}
}

// hostileBackend is a router all of whose peers, containers and objects have such names.
type hostileBackend struct{ *fakeBackend }

func (hostileBackend) Ready(context.Context) api.Ready {
	return api.Ready{Ready: true, Version: hostile, Name: hostile}
}

func (b hostileBackend) LookupName(context.Context, api.LookupRequest) ([]string, error) {
	return []string{hostile, "10.32.0.1"}, b.err
}

func (b hostileBackend) RemovePeers(context.Context, api.PeersRequest) ([]api.Removed, error) {
	return []api.Removed{{Peer: hostile, Addresses: 1}}, b.err
}

func (b hostileBackend) ShowPolicy(context.Context, api.PolicyShowRequest) (api.PolicyReply, error) {
	return api.PolicyReply{Lines: []string{hostile, "ingress"}}, b.err
}

func (b hostileBackend) TracePolicy(context.Context, api.PolicyTraceRequest) (api.PolicyReply, error) {
	return api.PolicyReply{Lines: []string{hostile}}, b.err
}

func (hostileBackend) ExpectPod(context.Context, api.PolicyPodRequest) error { return nil }

func (hostileBackend) ForgetPod(context.Context, api.PolicyPodRequest) error { return nil }

func (b hostileBackend) handler() http.Handler {
	return api.Handler(api.StatusRoutes(b, nil), api.ContainerRoutes(b), api.ExposureRoutes(b), api.LeaseRoutes(b), api.NameRoutes(b),
		api.PeerRoutes(b), api.LifecycleRoutes(b), api.PolicyRoutes(b))
}

func serveHandler(t *testing.T, h http.Handler) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "weft")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "weft.sock")
	l, err := api.ListenUnix(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- api.Serve(ctx, l, h, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	return socket
}

// checkPrintable fails if text has more lines than it should, or a character that is not
// printable.
func checkPrintable(t *testing.T, what, text string, lines int) {
	t.Helper()
	if got := strings.Count(text, "\n"); got != lines {
		t.Errorf("%s: %d lines, want %d:\n%q", what, got, lines, text[:min(len(text), 2000)])
	}
	if !utf8.ValidString(text) {
		t.Errorf("%s: no UTF-8: %q", what, text)
	}
	for i, r := range text {
		if r != '\n' && !unicode.IsPrint(r) {
			t.Errorf("%s: character %U at %d of\n%q", what, r, i, text[:min(len(text), 2000)])
			return
		}
	}
}

// No command prints a control character, nor a line more, because of a name or a reason
// that others chose.
func TestHostileNamesMakeNoLines(t *testing.T) {
	report := reportOf(hostile)
	good := serveHandler(t, hostileBackend{&fakeBackend{report: reportOf("x")}}.handler())
	evil := serveHandler(t, hostileBackend{&fakeBackend{report: report}}.handler())
	for _, line := range []string{
		"status", "status targets", "status connections", "status peers", "status dns", "status ipam",
		"report", "ps", "dns-lookup web", "rmpeer h2", "policy show web", "policy trace a b 1", "version", "config",
		"report -f {{range.Router.Peers}}{{.NickName}}{{println}}{{.Connections|json}}{{println}}{{end}}",
	} {
		run := func(socket string) string {
			args := append(strings.Fields(line), "--socket", socket)
			if strings.HasPrefix(line, "policy") {
				args = append(args, "--policy-socket", socket)
			}
			code, stdout, stderr := weft(args...)
			if code != ExitOK || stderr != "" {
				t.Fatalf("weft %s: exit code %d, stderr %q", line, code, stderr)
			}
			return stdout
		}
		want := strings.Count(run(good), "\n")
		checkPrintable(t, "weft "+line, run(evil), want)
	}
}

// doctor examines this host too, so only the lines on the router are counted.
func TestDoctorEncodesTheReport(t *testing.T) {
	report := reportOf(hostile)
	socket := serveHandler(t, hostileBackend{&fakeBackend{report: report}}.handler())
	_, stdout, _ := weft("doctor", "--socket", socket)
	checkPrintable(t, "doctor", stdout, strings.Count(stdout, "\n"))
	if strings.Contains(stdout, "\n02:00") || !strings.Contains(stdout, `\x1b[2J`) {
		t.Errorf("doctor lets a name make a line:\n%s", stdout)
	}
}

// The reason of an error, which may be that of a peer or of the engine, is one line.
func TestHostileReasonsAreOneLine(t *testing.T) {
	socket := serveHandler(t, hostileBackend{&fakeBackend{report: someReport(), err: errors.New(hostile)}}.handler())
	for _, line := range []string{
		"status", "report", "ps", "attach web", "detach web", "expose", "hide", "dns-add web -h x", "dns-remove web", "connect h2",
		"forget h2", "rmpeer h2", "adopt 0123", "prime", "stop", "policy show web", "policy trace a b 1", "dns-lookup web", "env",
	} {
		args := append(strings.Fields(line), "--socket", socket)
		if strings.HasPrefix(line, "policy") {
			args = append(args, "--policy-socket", socket)
		}
		code, _, stderr := weft(args...)
		if code != ExitFailed {
			t.Errorf("weft %s: exit code %d", line, code)
		}
		checkPrintable(t, "weft "+line, stderr, 1)
	}
}

// Clients such as curl get encoded text too, from each view and in JSON.
func TestStatusAddressEncodesNames(t *testing.T) {
	good, evil := reportOf("x"), reportOf(hostile)
	get := func(r *api.Report, path, accept string) string {
		w := httptest.NewRecorder()
		q := httptest.NewRequest("GET", path, nil)
		q.Header.Set("Accept", accept)
		hostileBackend{&fakeBackend{report: r}}.handler().ServeHTTP(w, q)
		b, err := io.ReadAll(w.Body)
		if err != nil || w.Code != http.StatusOK {
			t.Fatalf("GET %s: %d, %v", path, w.Code, err)
		}
		return string(b)
	}
	for _, path := range []string{"/status", "/status/connections", "/status/peers", "/status/dns", "/status/ipam", "/status/targets", "/report", "/ready", "/ps"} {
		for _, accept := range []string{"text/plain", "application/json"} {
			lines := strings.Count(get(good, path, accept), "\n")
			checkPrintable(t, "GET "+path+" as "+accept, get(evil, path, accept), lines)
		}
	}
}
