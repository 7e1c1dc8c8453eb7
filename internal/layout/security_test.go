package layout

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The page about security names constants with their values, and tests. Both must exist,
// so that the page never says more than the code does. Each threat has a test in which real
// routers suffer it.
func TestSecurityPageIsTrue(t *testing.T) {
	page, err := os.ReadFile("../../site/pages/security.md")
	if err != nil {
		t.Fatal(err)
	}
	bounds := regexp.MustCompile("`([a-z/]+)\\.([a-zA-Z]+)` = ([0-9]+)( KiB| MiB)?").FindAllStringSubmatch(string(page), -1)
	if len(bounds) < 20 {
		t.Errorf("the page has %d bounds", len(bounds))
	}
	for _, b := range bounds {
		want, _ := strconv.ParseInt(b[3], 10, 64)
		switch b[4] {
		case " KiB":
			want <<= 10
		case " MiB":
			want <<= 20
		}
		if got, ok := constant(t, b[1], b[2]); !ok || got != want {
			t.Errorf("%s.%s is %d (found %v), the page says %d", b[1], b[2], got, ok, want)
		}
	}
	tests := testNames(t)
	find := regexp.MustCompile("`(Test[A-Za-z0-9]+)`")
	names := find.FindAllStringSubmatch(string(page), -1)
	if len(names) < 20 {
		t.Errorf("the page names %d tests", len(names))
	}
	for _, n := range names {
		if tests[n[1]] == nil {
			t.Errorf("the page names %s, which does not exist", n[1])
		}
	}
	rows := threats(t, string(page))
	if len(rows) < 20 {
		t.Errorf("the page has %d threats", len(rows))
	}
	for _, row := range rows {
		real := slices.ContainsFunc(find.FindAllStringSubmatch(row, -1), func(n []string) bool {
			return slices.ContainsFunc(tests[n[1]], func(folder string) bool { return strings.HasPrefix(folder, "e2e/") })
		})
		if !real && !slices.ContainsFunc(simulated, func(s string) bool { return strings.Contains(row, s) }) {
			t.Errorf("no test with real routers, in e2e, is named for the threat %.120s", row)
		}
	}
}

// simulated are the threats that only a simulation shows, because real routers would take
// hours: here tens of thousands of decisions.
var simulated = []string{"| fill the ring with small ranges |"}

// threats returns the rows of the threat model, without its head.
func threats(t *testing.T, page string) (rows []string) {
	t.Helper()
	_, section, ok := strings.Cut(page, "\n## Threat model\n")
	section, _, ok2 := strings.Cut(section, "\n## ")
	if !ok || !ok2 {
		t.Fatal("the page has no threat model")
	}
	for line := range strings.Lines(section) {
		if strings.HasPrefix(line, "|") {
			rows = append(rows, line)
		}
	}
	return rows[2:]
}

// testNames returns the names of all tests of the repository, with the folders that have a
// test of that name.
func testNames(t *testing.T) map[string][]string {
	t.Helper()
	names := make(map[string][]string)
	find := regexp.MustCompile(`(?m)^func (Test[A-Za-z0-9]+)\(`)
	err := filepath.WalkDir("../..", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		src, err := os.ReadFile(path)
		folder := strings.TrimPrefix(filepath.ToSlash(filepath.Dir(path)), "../../")
		for _, m := range find.FindAllSubmatch(src, -1) {
			names[string(m[1])] = append(names[string(m[1])], folder)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// constant returns the value of an integer constant of a package of the repository.
func constant(t *testing.T, pkg, name string) (int64, bool) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("../..", filepath.FromSlash(pkg), "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("package %s: %d files, %v", pkg, len(files), err)
	}
	for _, f := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), f, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.CONST {
				continue
			}
			for _, s := range g.Specs {
				v := s.(*ast.ValueSpec)
				for i, n := range v.Names {
					if n.Name == name && i < len(v.Values) {
						return evaluate(v.Values[i])
					}
				}
			}
		}
	}
	return 0, false
}

// evaluate computes an expression of integer literals.
func evaluate(e ast.Expr) (int64, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		n, err := strconv.ParseInt(e.Value, 0, 64)
		return n, err == nil
	case *ast.ParenExpr:
		return evaluate(e.X)
	case *ast.BinaryExpr:
		x, ok1 := evaluate(e.X)
		y, ok2 := evaluate(e.Y)
		switch e.Op {
		case token.SHL:
			return x << uint(y), ok1 && ok2
		case token.MUL:
			return x * y, ok1 && ok2
		case token.ADD:
			return x + y, ok1 && ok2
		case token.SUB:
			return x - y, ok1 && ok2
		}
	}
	return 0, false
}
