package main

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/cover"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/tester"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// testSecondsMax ends a test run; what was not run by then has failed.
const testSecondsMax = 60

// testLimit ends one test, and after so many that did not end no further one is run.
const (
	testLimit       = 5 * time.Second
	testsUnendedMax = 2
)

// whySecondsMax bounds what is spent on saying why tests failed, for all of them together.
const whySecondsMax = 15

const (
	notTrue = "it was not true"
	notRun  = "it was not run, since others did not end"
)

type testAnswer struct {
	Tests    []testResult   `json:"tests"`
	Coverage []fileCoverage `json:"coverage,omitempty"`
	Untested []string       `json:"untested"`          // listed rules without a test in their folder
	BadRun   string         `json:"bad_run,omitempty"` // why `run` is no regular expression
}

type testResult struct {
	Package    string   `json:"package"`
	Name       string   `json:"name"`
	File       string   `json:"file"`
	Row        int      `json:"row"`
	Passed     bool     `json:"passed"`
	Error      string   `json:"error"`
	DurationUS int64    `json:"duration_us"`
	Output     string   `json:"output"`
	Failed     *step    `json:"failed"` // the expression at which a test ended that did not pass
	Cases      []string `json:"cases"`  // of a test with cases, those that did not pass

	unended bool
}

// testRun is what a run of tests is to do.
type testRun struct {
	only    string              // a regular expression for full names; "" for all
	covered *cover.Cover        // nil: not wanted
	tracer  topdown.QueryTracer // nil: none
	explain bool                // say of those that fail why
	limit   time.Duration       // of one test; 0: testLimit
}

type fileCoverage struct {
	File          string `json:"file"`
	Covered       int    `json:"covered"`
	Total         int    `json:"total"`
	UncoveredRows []int  `json:"uncovered_rows"`
}

// test runs a constitution's own tests, as `opa test` does but with strict built-in errors, the reduced capabilities
// and the input's schema: what passes here is what decides.
func test(r request) (any, error) {
	if _, err := regexp.Compile(r.Run); err != nil {
		return testAnswer{Tests: []testResult{}, Untested: []string{}, BadRun: err.Error()}, nil
	}
	reading := readSource
	if r.Draft {
		reading = readDraft
	}
	src, problems, err := reading(r.Path)
	if err != nil {
		return nil, err
	}
	if len(problems) > 0 {
		return nil, invalid(problems)
	}
	c, problems := compileConstitution(src)
	if len(problems) > 0 {
		return nil, invalid(problems)
	}
	run := testRun{only: r.Run, explain: true}
	if r.Coverage {
		run.covered = cover.New()
	}
	results, problems := c.test(run)
	if len(problems) > 0 {
		return nil, invalid(problems)
	}
	answer := testAnswer{Tests: orEmpty(results), Untested: c.rulesWithoutTests()}
	if run.covered != nil {
		answer.Coverage = c.coverage(run.covered.Report(c.modules))
	}
	return answer, nil
}

// rulesWithoutTests names the listed rules that have no test in their folder.
func (c *constitution) rulesWithoutTests() []string {
	tested := map[string]bool{}
	for name, module := range c.tests {
		for _, rule := range module.Rules {
			if strings.HasPrefix(rule.Head.Ref()[0].String(), tester.TestPrefix) {
				tested[path.Dir(name)+"/"] = true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(orEmpty(c.rules)), func(rule string) bool { return tested[rulesFolder+rule+"/"] })
}

// test compiles rules and tests together and runs the test_ rules.
func (c *constitution) test(run testRun) ([]testResult, []problem) {
	modules := cloneModules(c.modules, c.tests)
	r := &report{src: c.src, names: &knownNames{modules: modules}}
	limit := cmp.Or(run.limit, testLimit)
	ctx, cancel := context.WithTimeout(context.Background(), testSecondsMax*time.Second)
	defer cancel()
	compiler := newCompiler(c.schemas).
		WithPathConflictsCheck(storage.NonEmpty(ctx, c.store, c.txn)).
		WithEnablePrintStatements(true).
		WithRewriteTestRules(false)
	runner := tester.NewRunner().
		SetCompiler(compiler).
		SetStore(c.store).
		SetModules(modules).
		RaiseBuiltinErrors(true).
		CapturePrintOutput(true).
		SetCoverageRuns(nil).
		SetTimeout(limit).
		Filter(run.only).
		SetParallel(1)
	switch {
	case run.covered != nil:
		runner.SetCoverageQueryTracer(run.covered)
	case run.tracer != nil:
		runner.SetCoverageQueryTracer(run.tracer)
	}
	events, err := runner.RunTests(ctx, c.txn)
	if err != nil {
		r.opa(err, "")
		return nil, r.problems
	}
	var results []testResult
	unended := 0
	for event := range events {
		if topdown.IsCancel(event.Error) && unended == testsUnendedMax {
			continue // it was ended with all the others
		}
		result := resultOf(event, limit)
		if result.unended {
			if unended++; unended == testsUnendedMax {
				cancel()
			}
		}
		results = append(results, result)
	}
	if unended == testsUnendedMax {
		results = append(results, c.testsNotRun(results, run.only)...)
	} else if ctx.Err() != nil {
		r.add(problem{
			Message: fmt.Sprintf("the tests did not end within %d s", testSecondsMax), Hint: "make them smaller, or the rule quicker",
		})
	}
	slices.SortFunc(results, func(a, b testResult) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Row, b.Row), cmp.Compare(a.Name, b.Name))
	})
	if run.explain {
		c.explainTests(results, compiler)
	}
	return results, r.problems
}

// explainTests adds to each test that failed where it ended, as long as there is time.
func (c *constitution) explainTests(results []testResult, compiler *ast.Compiler) {
	ctx, cancel := context.WithTimeout(context.Background(), whySecondsMax*time.Second)
	defer cancel()
	for i := range results {
		if result := &results[i]; !result.Passed && !result.unended && result.Error != notRun && ctx.Err() == nil {
			asker := c.asker(ctx, compiler)
			result.Failed = asker.whyTestFailed(result)
		}
	}
}

// whyTestFailed runs a test once more, for the expression at which it ended.
func (a *asker) whyTestFailed(result *testResult) *step {
	pkg, err := ast.ParseRef("data." + result.Package)
	if err != nil {
		return nil
	}
	ref := pkg.Append(ast.StringTerm(result.Name))
	if result.Error != notTrue {
		failed := a.errorIn(ref, nil)
		if failed == nil {
			return nil
		}
		result.Error = failed.Message
		return failed.At
	}
	r := a.trace(ast.NewTerm(ref), nil, nil)
	if r.root == nil {
		return nil
	}
	for _, child := range r.root.children {
		rule, ok := child.node.(*ast.Rule)
		if ok && rule.Ref().GroundPrefix().Equal(ref) && child.failed != nil {
			return a.whyTestEnded(child.failed)
		}
	}
	return nil
}

// whyTestEnded shows the test's own expression, and below it the one of the policy that it comes from.
func (a *asker) whyTestEnded(m *moment) *step {
	if every, ok := m.expr.Terms.(*ast.Every); ok {
		if inner := failedElement(m, every); inner != nil {
			return a.whyTestEnded(inner)
		}
	}
	found := a.describe(m, withGenerated(m.expr), m.expr.BaseCogeneratedExpr())
	switch ref, named := a.namedRule(m.expr); {
	case m.expr.Negated:
		found.Because = a.whyTrue(m, 0)
	case named:
		if best := nearest(a.ways(ref, m, 1)); best != nil && best.failed != nil {
			found.Inside = a.whyNot(*best, 1)
		}
	default:
		found.Inside = a.inside(m, 0)
	}
	return found
}

func resultOf(event *tester.Result, limit time.Duration) testResult {
	result := testResult{
		Cases:      []string{},
		Package:    strings.TrimPrefix(event.Package, "data."),
		Name:       event.Name,
		Passed:     event.Pass(),
		DurationUS: event.Duration.Microseconds(),
		Output:     string(event.Output),
	}
	if event.Location != nil {
		result.File, result.Row = event.Location.File, event.Location.Row
	}
	switch {
	case topdown.IsCancel(event.Error):
		result.unended = true
		result.Error = fmt.Sprintf("it did not end within %s, and the bus gives a whole decision policy.timeout_seconds (0.25 s unless set)", inSeconds(limit))
	case event.Error != nil:
		result.Error = event.Error.Error()
	case event.Skip:
		result.Error = "it is marked todo, and a constitution has no tests to come"
	case !result.Passed:
		result.Error = notTrue
	}
	for names, one := range event.SubResults.Iter {
		if one.Fail && len(one.SubResults) == 0 {
			result.Cases = append(result.Cases, strings.Join(names, " / "))
		}
	}
	return result
}

func inSeconds(limit time.Duration) string { return fmt.Sprintf("%g s", limit.Seconds()) }

// testsNotRun are those that were left out when too many others had not ended.
func (c *constitution) testsNotRun(results []testResult, only string) []testResult {
	wanted := regexp.MustCompile(only)
	var left []testResult
	for _, file := range sortedKeys(c.tests) {
		module := c.tests[file]
		pkg := strings.TrimPrefix(module.Package.Path.String(), "data.")
		for _, rule := range module.Rules {
			name := string(rule.Head.Ref()[0].Value.(ast.Var))
			isSame := func(other testResult) bool {
				return other.Package == pkg && strings.HasPrefix(other.Name, name) && other.Row == rule.Location.Row
			}
			if !strings.HasPrefix(name, tester.TestPrefix) || rule.Default || slices.ContainsFunc(results, isSame) ||
				!wanted.MatchString("data."+pkg+"."+name) {
				continue
			}
			left = append(left, testResult{
				Package: pkg, Name: name, File: file, Row: rule.Location.Row, Error: notRun, Cases: []string{},
			})
		}
	}
	return left
}

// runTests is the part of check that runs tests: each one that fails is a problem. What they saw is noted where wanted.
func (c *constitution) runTests(seen *answersSeen) (testCounts, []problem) {
	counts := testCounts{Failures: []testFailure{}}
	run := testRun{}
	if seen != nil {
		run.tracer = seen
	}
	results, problems := c.test(run)
	r := &report{src: c.src, problems: problems}
	for _, result := range results {
		if result.Passed {
			counts.Passed++
			continue
		}
		if result.Error == notTrue {
			counts.Failed++
		} else {
			counts.Errored++
		}
		counts.Failures = append(counts.Failures, testFailure{
			Package: result.Package, Name: result.Name, File: result.File, Row: result.Row, Message: result.Error,
		})
		if result.Error == notRun {
			continue // of those that did not end there is a problem each
		}
		hint := "mend the rule, or the test where the rule is right; `eab policy test` shows more"
		if result.unended {
			hint = "make the rule quicker: what goes through a list for each element of a list takes the square of its length"
		}
		r.add(problem{
			Message: fmt.Sprintf("the test %s.%s fails: %s", result.Package, result.Name, result.Error),
			File:    result.File, Row: result.Row, Col: 1, Hint: hint,
		})
	}
	return counts, r.problems
}

// coverage is of what decides, not of the tests themselves.
func (c *constitution) coverage(found cover.Report) []fileCoverage {
	list := []fileCoverage{}
	for _, name := range sortedKeys(c.modules) {
		file := found.Files[name]
		if file == nil {
			continue
		}
		one := fileCoverage{File: name, Covered: file.CoveredLines, Total: file.CoveredLines + file.NotCoveredLines, UncoveredRows: []int{}}
		for _, span := range file.NotCovered {
			for row := span.Start.Row; row <= span.End.Row; row++ {
				one.UncoveredRows = append(one.UncoveredRows, row)
			}
		}
		slices.Sort(one.UncoveredRows)
		one.UncoveredRows = slices.Compact(one.UncoveredRows)
		list = append(list, one)
	}
	return list
}
