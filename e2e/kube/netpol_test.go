//go:build kube && netpol

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/image"
	"github.com/weft-net/weft/internal/netdev/nstest"
)

// suiteTimeout bounds the whole suite of upstream's tests.
const suiteTimeout = 3 * time.Hour

// needsSCTP is part of the names of tests that need SCTP in the kernel.
const needsSCTP = "[Feature:SCTPConnectivity]"

// Runs upstream's released tests of NetworkPolicies, several at a time. Each is a subtest.
func TestUpstream(t *testing.T) {
	focus, workers := os.Getenv("NETPOL_FOCUS"), os.Getenv("NETPOL_WORKERS")
	if focus == "" || workers == "" {
		t.Fatal("NETPOL_FOCUS must be set to the tests to run, and NETPOL_WORKERS to how many at once; run: make test-netpol")
	}
	wanted, err := regexp.Compile(focus)
	if err != nil {
		t.Fatal(err)
	}
	flags := []string{"--focus=" + focus, "--procs=" + workers}
	if !hasSCTP(t) {
		flags = append(flags, "--skip="+regexp.QuoteMeta(needsSCTP))
	}
	specs, ended := newSuite(t).run(flags)
	ran := 0
	for _, s := range specs {
		switch {
		case s.LeafNodeType == "It" && wanted.MatchString(s.name()):
			ran++
			t.Run(s.name(), s.report)
		case s.LeafNodeType != "It" && s.State != "passed": // setup and teardown of the suite
			t.Errorf("%s %s: %s", s.LeafNodeType, s.State, s.Failure.Message)
		}
	}
	if ran == 0 {
		t.Errorf("no upstream test matches %q", focus)
	}
	if ended != nil && !t.Failed() {
		t.Errorf("all tests passed, but the suite ended with: %v", ended)
	}
}

// hasSCTP reports whether the kernel has SCTP.
func hasSCTP(t *testing.T) bool {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return false
	}
	if err != nil {
		t.Fatalf("open a socket for SCTP: %v", err)
	}
	unix.Close(fd)
	return true
}

// suite is upstream's end-to-end suite, and a cluster with weft to run it on.
type suite struct {
	*kube
	repositories string // file with the registries of images
}

func newSuite(t *testing.T) *suite {
	t.Helper()
	k := newCluster(t, "iptables")
	s := &suite{kube: k, repositories: filepath.Join(k.Network.Dir(), "repositories.yaml")}
	// With these names no image is pulled from a registry.
	if err := os.WriteFile(s.repositories, []byte("gcRegistry: localhost\npromoterE2eRegistry: localhost\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	k.addAgnhost(s.agnhost())
	return s
}

// addAgnhost adds the image of upstream's tests to all nodes, with additional files.
func (k *kube) addAgnhost(name string, more ...image.File) {
	k.t.Helper()
	agnhost, err := image.Read(filepath.Join(k.Programs, "agnhost"), "/agnhost")
	if err != nil {
		k.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(k.t.Context(), timeout)
	defer cancel()
	if err := k.AddImage(ctx, &image.Image{
		Names: []string{name}, Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}, Files: append(more, agnhost),
	}); err != nil {
		k.t.Fatal(err)
	}
}

// agnhost returns the suite's name of the image that all pods of these tests use.
func (s *suite) agnhost() string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), timeout)
	defer cancel()
	list := s.Command(ctx, filepath.Join(s.Programs, "e2e.test"), "--list-images")
	list.Env = append(list.Env, s.env())
	out, err := list.Output()
	if err != nil {
		s.t.Fatalf("list the images of the suite: %v", err)
	}
	name := regexp.MustCompile(`(?m)^localhost/agnhost:.*$`).FindString(string(out))
	if name == "" {
		s.t.Fatalf("the images of the suite have no agnhost:\n%s", out)
	}
	return name
}

func (s *suite) env() string { return "KUBE_TEST_REPO_LIST=" + s.repositories }

// run runs the suite and returns the results of its tests. The error is that of its process.
func (s *suite) run(flags []string) ([]spec, error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), suiteTimeout)
	defer cancel()
	const report = "report.json"
	// Ginkgo must be able to read its working directory, and the test's one is outside the host.
	args := append([]string{"--chdir=/", filepath.Join(s.Programs, "ginkgo")}, flags...)
	args = append(args, "--no-color", "--silence-skips", "--timeout="+suiteTimeout.String(), "--output-dir="+s.Network.Dir(), "--json-report="+report,
		filepath.Join(s.Programs, "e2e.test"), "--", "--provider=skeleton", fmt.Sprintf("--num-nodes=%d", len(s.Nodes)))
	ginkgo := s.Command(ctx, "env", args...)
	ginkgo.Env = append(ginkgo.Env, s.env())
	ginkgo.Stdout, ginkgo.Stderr = os.Stdout, os.Stderr // to show the progress
	ended := ginkgo.Run()
	b, err := os.ReadFile(filepath.Join(s.Network.Dir(), report))
	if err != nil {
		s.t.Fatalf("%v; the suite: %v", err, ended)
	}
	var reports []struct{ SpecReports []spec }
	if err := json.Unmarshal(b, &reports); err != nil || len(reports) != 1 {
		s.t.Fatalf("report of %d suites: %v", len(reports), err)
	}
	return reports[0].SpecReports, ended
}

// spec is the result of a test in Ginkgo's report.
type spec struct {
	ContainerHierarchyTexts    []string
	LeafNodeType, LeafNodeText string
	State                      string
	RunTime                    time.Duration
	Failure                    struct{ Message string }
}

func (s spec) name() string {
	return strings.Join(append(s.ContainerHierarchyTexts, s.LeafNodeText), " ")
}

// report gives a subtest the result of the spec.
func (s spec) report(t *testing.T) {
	switch {
	case s.State == "passed":
		t.Logf("passed in %v", s.RunTime.Round(time.Second))
	case s.State == "skipped" && strings.Contains(s.name(), needsSCTP):
		nstest.Lacks(t, "SCTP")
	default:
		t.Errorf("%s after %v: %s", s.State, s.RunTime.Round(time.Second), s.Failure.Message)
	}
}
