package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/cover"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/tester"
)

// testSecondsMax ends a test run; what was not run by then has failed.
const testSecondsMax = 60

type testAnswer struct {
	Tests    []testResult   `json:"tests"`
	Coverage []fileCoverage `json:"coverage,omitempty"`
}

type testResult struct {
	Package    string `json:"package"`
	Name       string `json:"name"`
	File       string `json:"file"`
	Row        int    `json:"row"`
	Passed     bool   `json:"passed"`
	Error      string `json:"error"`
	DurationUS int64  `json:"duration_us"`
	Output     string `json:"output"`
}

type fileCoverage struct {
	File          string `json:"file"`
	Covered       int    `json:"covered"`
	Total         int    `json:"total"`
	UncoveredRows []int  `json:"uncovered_rows"`
}

// test runs a constitution's own tests, as `opa test` does but with strict built-in errors, the reduced capabilities
// and the input's schema: what passes here is what decides.
func test(from string, coverage bool) (any, error) {
	src, problems, err := readSource(from)
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
	var covered *cover.Cover
	if coverage {
		covered = cover.New()
	}
	results, problems := c.test(covered)
	if len(problems) > 0 {
		return nil, invalid(problems)
	}
	answer := testAnswer{Tests: orEmpty(results)}
	if covered != nil {
		answer.Coverage = c.coverage(covered.Report(c.modules))
	}
	return answer, nil
}

// test compiles rules and tests together and runs every test_ rule.
func (c *constitution) test(covered *cover.Cover) ([]testResult, []problem) {
	r := &report{src: c.src}
	modules := cloneModules(c.modules, c.tests)
	ctx, cancel := context.WithTimeout(context.Background(), testSecondsMax*time.Second)
	defer cancel()
	compiler := newCompiler(c.schemas).
		WithPathConflictsCheck(storage.NonEmpty(ctx, c.store, c.txn)).
		WithEnablePrintStatements(true).
		WithRewriteTestRules(false)
	runner := tester.NewRunner().
		SetCompiler(compiler).
		SetStore(c.store).
		SetStore(c.store).
		SetModules(modules).
		RaiseBuiltinErrors(true).
		CapturePrintOutput(true).
		SetParallel(1)
	if covered != nil {
		runner.SetCoverageQueryTracer(covered)
	}
	events, err := runner.RunTests(ctx, c.txn)
	if err != nil {
		r.opa(err, "")
		return nil, r.problems
	}
	var results []testResult
	for event := range events {
		results = append(results, resultOf(event))
	}
	if ctx.Err() != nil {
		r.add(problem{
			Message: fmt.Sprintf("the tests did not end within %d s", testSecondsMax), Hint: "make them smaller, or the rule quicker",
		})
	}
	slices.SortFunc(results, func(a, b testResult) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Row, b.Row), cmp.Compare(a.Name, b.Name))
	})
	return results, r.problems
}

func resultOf(event *tester.Result) testResult {
	result := testResult{
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
	case event.Error != nil:
		result.Error = event.Error.Error()
	case event.Skip:
		result.Error = "it is marked todo, and a constitution has no tests to come"
	case !result.Passed:
		result.Error = "it was not true"
	}
	return result
}

// runTests is the part of check that runs tests: each one that fails is a problem.
func (c *constitution) runTests() (testCounts, []problem) {
	counts := testCounts{Failures: []testFailure{}}
	results, problems := c.test(nil)
	r := &report{src: c.src, problems: problems}
	for _, result := range results {
		if result.Passed {
			counts.Passed++
			continue
		}
		if result.Error == "it was not true" {
			counts.Failed++
		} else {
			counts.Errored++
		}
		counts.Failures = append(counts.Failures, testFailure{
			Package: result.Package, Name: result.Name, File: result.File, Row: result.Row, Message: result.Error,
		})
		r.add(problem{
			Message: fmt.Sprintf("the test %s.%s fails: %s", result.Package, result.Name, result.Error),
			File:    result.File, Row: result.Row, Col: 1,
			Hint: "mend the rule, or the test where the rule is right; `eab policy test` shows more",
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
