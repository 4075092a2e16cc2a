package main

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/tester"
)

// misplacedTests names tests that are not where they are run, or ask for what every other rule can change.
func (c *constitution) misplacedTests() []problem {
	r := &report{src: c.src}
	for _, name := range sortedKeys(c.modules) {
		c.testFileName(name, r)
	}
	for _, name := range sortedKeys(c.tests) {
		c.asksDecision(name, r)
		c.notRun(name, r)
	}
	return r.problems
}

// testFileName names a test's package in a file that is loaded for deciding.
func (c *constitution) testFileName(name string, r *report) {
	module := c.modules[name]
	pkg := module.Package.Path
	last := plain(pkg[len(pkg)-1])
	isRule := pkg.HasPrefix(rulesPrefix) && slices.Contains(c.rules, last) && len(pkg) == len(rulesPrefix)+1
	if !strings.HasSuffix(last, "_test") || isRule {
		return
	}
	base := strings.TrimSuffix(path.Base(name), ".rego")
	meant := path.Join(path.Dir(name), strings.TrimPrefix(base, tester.TestPrefix)+"_test.rego")
	r.kind(warnTestFile, module.Package.Location,
		"its package ends in _test and its file name does not: it is loaded for deciding, and its tests are not run",
		"rename it to "+meant)
}

func (c *constitution) asksDecision(name string, r *report) {
	module := c.tests[name]
	pkg := strings.TrimPrefix(module.Package.Path.String(), "data.")
	if pkg == "bus.main_test" {
		return
	}
	walkRefs(module, func(ref ast.Ref, location *ast.Location) {
		if ref.HasPrefix(decisionRef) {
			r.kind(warnTestAsksDecision, location,
				fmt.Sprintf("a test in package %s asks data.bus.decision, which every other rule can change", pkg),
				"move it to package bus.main_test, or ask this rule's own `admit`")
		}
	})
}

// notRun names rules of a test file that are no tests by name, and that nothing uses.
func (c *constitution) notRun(file string, r *report) {
	seen := map[string]bool{}
	for _, rule := range c.tests[file].Rules {
		name := string(rule.Head.Name)
		if name == "" || seen[name] || strings.HasPrefix(name, tester.TestPrefix) ||
			strings.HasPrefix(name, tester.SkipTestPrefix) || c.usedInTests(name) {
			continue
		}
		seen[name] = true
		hint := "begin its name with test_, or remove it"
		begin, rest, found := strings.Cut(name, "_")
		if found && closest(begin, []string{"test"}) != "" {
			hint = fmt.Sprintf("did you mean %s%s?", tester.TestPrefix, rest)
		}
		r.kind(warnTestName, rule.Location, fmt.Sprintf("%s is not run: its name does not begin with test_, and no test uses it", name), hint)
	}
}

// usedInTests says whether another rule of any test file may name this one.
func (c *constitution) usedInTests(name string) bool {
	found := false
	for _, module := range c.tests {
		for _, rule := range module.Rules {
			if string(rule.Head.Name) == name {
				continue
			}
			ast.WalkTerms(rule, func(term *ast.Term) bool {
				found = found || plain(term) == name
				return found
			})
		}
	}
	return found
}
