package main

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

const (
	admitName       = "admit"
	defaultAdmit    = "default admit := false"
	rulesListHint   = `write bus/manifest/data.json as {"rules": ["first_rule", "second_rule"]}`
	rulesListString = "data.bus.manifest.rules"
)

// listedRules is data.bus.manifest.rules: every rule in it must admit, so an empty list must not pass for all of them.
func (c *constitution) listedRules(r *report) []string {
	row := 1
	note := func(message string) {
		r.add(problem{Message: message, File: rulesListFile, Row: row, Hint: rulesListHint})
	}
	file := c.src.file(rulesListFile)
	if file == nil {
		note("there is no list of rules")
		return nil
	}
	if r.has(rulesListFile) {
		return nil // it is no JSON; that has been said
	}
	value, found := lookup(c.data, []string{root, "manifest", "rules"})
	list, isList := value.([]any)
	switch {
	case !found || !isList:
		note("it has no list `rules`")
		return nil
	case len(list) == 0:
		note("the list of rules is empty: there is nothing that must admit")
		return nil
	}
	rules := []string{}
	for _, entry := range list {
		name, ok := entry.(string)
		row = rowOf(file, jsonText(entry), slices.Contains(rules, name))
		switch {
		case !ok || name == "" || strings.Contains(name, "/") || !pathPattern.MatchString(name):
			note("a rule's name is " + jsonText(entry))
		case slices.Contains(rules, name):
			note(fmt.Sprintf("the rule %q is listed twice", name))
		default:
			rules = append(rules, name)
		}
	}
	return rules
}

// checkRuleFolders wants a folder for every listed rule, and a listed rule for every folder.
func (c *constitution) checkRuleFolders(r *report) {
	if c.rules == nil {
		return // without a list nothing is on it; that has been said once
	}
	folders := map[string]string{} // name to one of its files
	for _, file := range c.src.files {
		below, ok := strings.CutPrefix(file.path, rulesFolder)
		if name, _, nested := strings.Cut(below, "/"); ok && nested {
			folders[name] = file.path
		}
	}
	for _, name := range c.rules {
		if folders[name] == "" {
			r.add(problem{
				Message: fmt.Sprintf("the listed rule %q has no folder", name), File: rulesListFile,
				Row:  rowOf(c.src.file(rulesListFile), jsonText(name), false),
				Hint: fmt.Sprintf("write %s%s/%s.rego, or take the rule off the list", rulesFolder, name, name),
			})
			continue
		}
		c.checkDefault(name, r)
		c.checkAdmitNotData(name, r)
	}
	for _, name := range sortedKeys(folders) {
		if !slices.Contains(c.rules, name) {
			r.add(problem{
				Message: fmt.Sprintf("the rule folder %q is not listed, so nothing asks it", rulesFolder+name),
				File:    folders[name], Row: 1,
				Hint: fmt.Sprintf("add %q to rules in %s, or remove the folder", name, rulesListFile),
			})
		}
	}
}

// checkDefault wants `default admit := false` in the rule's own package and folder: a missing field must end in no.
func (c *constitution) checkDefault(name string, r *report) {
	pkg := append(ast.MustParseRef("data.bus.rules"), ast.StringTerm(name))
	first := ""
	for _, file := range sortedKeys(c.modules) {
		if !strings.HasPrefix(file, rulesFolder+name+"/") {
			continue
		}
		if first == "" {
			first = file
		}
		module := c.modules[file]
		if !module.Package.Path.Equal(pkg) {
			continue
		}
		for _, rule := range module.Rules {
			if !rule.Default || !rule.Head.Ref().Equal(ast.Ref{ast.VarTerm(admitName)}) {
				continue
			}
			if !rule.Head.Value.Equal(ast.BooleanTerm(false)) {
				r.at(rule.Location, fmt.Sprintf("the rule %q admits by default", name), "write `"+defaultAdmit+"`")
			}
			return
		}
	}
	if first == "" {
		first = rulesFolder + name + "/" + name + ".rego"
		if parsed := c.src.file(first); parsed != nil {
			return // it is there and does not parse; that has been said
		}
	}
	if module := c.modules[first]; module != nil && !module.Package.Path.Equal(pkg) {
		r.at(module.Package.Location, fmt.Sprintf("the listed rule %q is in %s", name, module.Package),
			fmt.Sprintf("write `package bus.rules.%s`, and in it `%s`", name, defaultAdmit))
		return
	}
	r.add(problem{
		Message: fmt.Sprintf("the listed rule %q has no `%s`", name, defaultAdmit), File: first, Row: 1,
		Hint: fmt.Sprintf("write `%s` in the package bus.rules.%s", defaultAdmit, name),
	})
}

// checkAdmitNotData refuses an answer that stands in a data file instead of being found by the rule.
func (c *constitution) checkAdmitNotData(name string, r *report) {
	if _, found := lookup(c.data, []string{root, "rules", name, admitName}); !found {
		return
	}
	for _, file := range c.dataFiles {
		if strings.HasPrefix(rulesFolder+name+"/", strings.TrimPrefix(path.Dir(file)+"/", "./")) {
			r.add(problem{
				Message: fmt.Sprintf("`admit` of the rule %q is given by data", name), File: file, Row: 1,
				Hint: "remove it: whether a rule admits is decided in Rego",
			})
		}
	}
}

func lookup(document any, keys []string) (any, bool) {
	for _, key := range keys {
		object, ok := document.(map[string]any)
		if !ok {
			return nil, false
		}
		if document, ok = object[key]; !ok {
			return nil, false
		}
	}
	return document, true
}
