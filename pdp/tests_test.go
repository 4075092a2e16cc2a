package main

import (
	"strings"
	"testing"
	"time"
)

const slow = `package bus.rules.one

default admit := false

admit if count([1 | some a in numbers.range(1, 20000); some b in numbers.range(1, 20000); a == b + input.message.hops]) > 0
`

// A test that does not end is ended and named in a sentence; after two no more are run, and none of those has passed.
func TestATestThatDoesNotEndIsNamed(t *testing.T) {
	const asks = " if data.bus.rules.one.admit with input.message.hops as 1\n\n"
	c := compiled(t, map[string]string{
		"bus/rules/one/one.rego":      slow,
		"bus/rules/one/one_test.rego": "package bus.rules.one_test\n\ntest_a" + asks + "test_b" + asks + "test_c" + asks + "test_d" + asks,
	})
	results, problems := c.test(testRun{explain: true, limit: 50 * time.Millisecond})
	if len(problems) > 0 || len(results) != 4 {
		t.Fatal(problems, results)
	}
	unended, left := 0, 0
	for _, result := range results {
		switch {
		case result.Passed:
			t.Errorf("%+v", result)
		case result.Error == notRun:
			left++
		case strings.HasPrefix(result.Error, "it did not end within 0.05 s"):
			unended++
		}
	}
	if unended != testsUnendedMax || left != 4-testsUnendedMax {
		t.Errorf("%+v", results)
	}
}
