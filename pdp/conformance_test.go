package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/test/cases"
	"github.com/open-policy-agent/opa/v1/util"
)

// Why this worker is not asked a case, beside those with a built-in that the contract removes.
const (
	keyword     = "a future keyword that the contract removes (not, and, or, rego.v2)"
	environment = "environment variables: the worker has none"
	notJSON     = "an input that JSON cannot say"
	noInput     = "no input at all: the bus always sends one"
	allData     = "a query that reads all of data, and so the query itself"
)

var futureKeyword = regexp.MustCompile(`import (future\.keywords\.(and|or|not)|rego\.v2)\b|(?ms)^\s*import future\.keywords$.*\bnot \{`)

// The removed built-ins for which cases are left out.
var removedInCases = []string{
	"bits.lsh", "crypto.x509.parse_and_verify_certificates", "http.send", "io.jwt.decode_verify", "io.jwt.encode_sign",
	"io.jwt.encode_sign_raw", "net.lookup_ip_addr", "opa.runtime", "rand.intn", "strings.render_template", "time.now_ns",
	"uuid.rfc4122",
}

// OPA's own test cases, asked through frames: the reduced capabilities, the reading of inputs, the base data, deadlines
// and the frames change no answer. A case's query becomes a decision, the list of what its variables are bound to.
func TestOPAsOwnCases(t *testing.T) {
	removed := removedBuiltins()
	skipped, used, asked := map[string]int{}, map[string]bool{}, 0
	c := converse(t)
	c.ask(opHello, []byte("{}"))
	for _, tc := range cases.MustLoad(opaCases(t)).Sorted().Cases {
		if why := notForUs(tc); why != "" {
			skipped[why]++
			continue
		}
		law, err := lawOf(tc)
		if name := usesRemoved(tc, err, removed); name != "" {
			used[name] = true
			skipped["removed built-in"]++
			continue
		}
		if err != nil && strings.Contains(err.Error(), "rule data.bus.decision is recursive") {
			skipped[allData]++
			continue
		}
		asked++
		t.Run(tc.Note, func(t *testing.T) {
			if err != nil {
				t.Fatal(err)
			}
			checkCase(t, tc, c, law)
		})
	}
	if asked < 2000 {
		t.Errorf("only %d cases were asked", asked)
	}
	if names := slices.Sorted(maps.Keys(used)); !slices.Equal(names, removedInCases) {
		t.Errorf("cases were left out for %v", names)
	}
	t.Logf("%d cases asked, not asked: %v", asked, skipped)
}

func opaCases(t *testing.T) string {
	t.Helper()
	found, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/open-policy-agent/opa").Output()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(strings.TrimSpace(string(found)), "v1", "test", "cases", "testdata", "v1")
}

func removedBuiltins() map[string]bool {
	removed := map[string]bool{}
	for _, builtin := range ast.CapabilitiesForThisVersion().Builtins {
		removed[builtin.Name] = true
	}
	for _, builtin := range capabilities().Builtins {
		delete(removed, builtin.Name)
	}
	return removed
}

func notForUs(tc cases.TestCase) string {
	switch {
	case tc.ExperimentalKeywords || slices.ContainsFunc(tc.Modules, futureKeyword.MatchString):
		return keyword
	case len(tc.Env) > 0:
		return environment
	}
	all := strings.Join(append(slices.Clone(tc.Modules), tc.Query), "\n")
	input, err := inputOf(tc)
	switch {
	case err != nil:
		return notJSON
	case input == nil && strings.Contains(all, "input"):
		return noInput
	}
	return ""
}

// inputOf is the case's input as the bus would send it.
func inputOf(tc cases.TestCase) ([]byte, error) {
	switch {
	case tc.InputTerm != nil:
		term, err := ast.ParseTerm(*tc.InputTerm)
		if err != nil {
			return nil, err
		}
		text, err := json.Marshal(json.RawMessage(term.String()))
		if err != nil {
			return nil, err
		}
		return text, nil
	case tc.Input != nil:
		return json.Marshal(*tc.Input)
	}
	return nil, nil
}

// usesRemoved names the removed built-in because of which a case does not compile.
func usesRemoved(tc cases.TestCase, err error, removed map[string]bool) string {
	if err == nil {
		return ""
	}
	replaced := strings.Contains(err.Error(), "with keyword target must reference existing")
	for _, name := range sortedKeys(removed) { // in one order: a case may use several
		used := strings.Contains(strings.Join(tc.Modules, "\n"), name)
		if strings.Contains(err.Error()+"\n", "undefined function "+name+"\n") || replaced && used {
			return name
		}
	}
	return ""
}

// lawOf makes a constitution of a case: its modules, and a decision that lists what the query's variables are bound to.
func lawOf(tc cases.TestCase) (*constitution, error) {
	modules := map[string]*ast.Module{}
	for i, text := range tc.Modules {
		name := fmt.Sprintf("test-%d.rego", i)
		module, err := ast.ParseModuleWithOpts(name, text, parserOptions())
		if err != nil {
			return nil, err
		}
		modules[name] = module
	}
	query := fmt.Sprintf("package bus\n\ndecision := [{%s} | %s]", bindings(tc), tc.Query)
	module, err := ast.ParseModuleWithOpts("query.rego", query, parserOptions())
	if err != nil {
		return nil, err
	}
	modules["query.rego"] = module
	data := map[string]any{}
	if tc.Data != nil {
		data = *tc.Data
	}
	object, err := ast.InterfaceToValue(data)
	if err != nil {
		return nil, err
	}
	c := &constitution{src: &source{}, store: inmem.NewFromASTObject(object.(ast.Object))}
	c.base = newBaseData(c.store, object.(ast.Object))
	if c.txn, err = c.store.NewTransaction(context.Background()); err != nil {
		return nil, err
	}
	c.compiler = ast.NewCompiler().WithCapabilities(capabilities()).WithDefaultRegoVersion(ast.RegoV1)
	if c.compiler.Compile(modules); c.compiler.Failed() {
		return nil, c.compiler.Errors
	}
	if c.reads = findReads(c.compiler, c.src); c.reads.cacheable {
		c.wanted = wantedOf(c.reads.paths)
	}
	c.query, err = rego.New(
		rego.ParsedQuery(ast.NewBody(ast.NewExpr(ast.NewTerm(decisionRef)))),
		rego.Compiler(c.compiler),
		rego.Store(c.base),
		rego.Transaction(c.txn),
		rego.Capabilities(capabilities()),
		rego.StrictBuiltinErrors(tc.StrictError),
	).PrepareForEval(context.Background())
	return c, err
}

// bindings names the variables that the case wants.
func bindings(tc cases.TestCase) string {
	names := map[string]bool{}
	if tc.WantResult != nil {
		for _, result := range *tc.WantResult {
			for name := range result {
				names[name] = true
			}
		}
	}
	var pairs []string
	for _, name := range slices.Sorted(maps.Keys(names)) {
		pairs = append(pairs, fmt.Sprintf("%q: %s", name, name))
	}
	return strings.Join(pairs, ", ")
}

func checkCase(t *testing.T, tc cases.TestCase, c *conversation, law *constitution) {
	digest := fmt.Sprintf("%064d", len(tc.Note))
	c.with.mu.Lock()
	c.with.loaded[digest] = law
	c.with.mu.Unlock()
	input, err := inputOf(tc)
	if err != nil {
		t.Fatal(err)
	}
	if input == nil {
		input = []byte("{}") // the bus always has an input
	}
	body := append([]byte(digest), 0, 0, 0, 0, 0, 0)
	binary.LittleEndian.PutUint32(body[64:], 20_000_000)
	answer := c.ask(opDecide, append(body, input...))
	if answer.op != statusOK {
		var fail failure
		if err := json.Unmarshal(answer.body, &fail); err != nil {
			t.Fatal(err)
		}
		checkFailure(t, tc, fail)
		return
	}
	if tc.WantErrorCode != nil || tc.WantError != nil {
		t.Fatalf("no error: %s", answer.body[4:])
	}
	if tc.WantResult == nil {
		t.Skip("it wants nothing")
	}
	var got any
	decoder := json.NewDecoder(bytes.NewReader(answer.body[4:]))
	decoder.UseNumber()
	if err := decoder.Decode(&got); err != nil {
		t.Fatal(err)
	}
	have, want := resultSet(got.([]any), tc.SortBindings), ast.NewSet()
	for _, result := range *tc.WantResult {
		want.Add(ast.NewTerm(ast.MustInterfaceToValue(result)))
	}
	if want.Compare(have) != 0 {
		t.Fatalf("want %v\n got %v", want, have)
	}
}

func resultSet(results []any, sorted bool) ast.Set {
	set := ast.NewSet()
	for _, result := range results {
		if sorted {
			for _, value := range result.(map[string]any) {
				slices.SortFunc(value.([]any), util.Compare)
			}
		}
		set.Add(ast.NewTerm(ast.MustInterfaceToValue(result)))
	}
	return set
}

func checkFailure(t *testing.T, tc cases.TestCase, fail failure) {
	switch {
	case tc.WantErrorCode != nil && strings.Contains(fail.Message, *tc.WantErrorCode):
	case tc.WantErrorCode == nil && tc.WantError != nil && strings.Contains(fail.Message, *tc.WantError):
	default:
		t.Fatalf("%s: %s; want %v %v", fail.Code, fail.Message, text(tc.WantErrorCode), text(tc.WantError))
	}
}

func text(want *string) string {
	if want == nil {
		return "-"
	}
	return *want
}
