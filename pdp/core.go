package main

import (
	"github.com/open-policy-agent/opa/v1/ast"
)

var (
	allowRef     = ast.MustParseRef("data.bus.allow")
	rulesListRef = ast.MustParseRef(rulesListString)
)

const coreHint = "keep `allow` and `decision` of the shipped bus/main.rego as they are: allow if every rule in " +
	rulesListString + " admits; and write what else must hold, or may pass, as a rule in bus/rules/"

// core names definitions by which a message could travel although a listed rule does not admit it.
func (l *linter) core() {
	for _, file := range sortedKeys(l.c.modules) {
		for i, rule := range l.c.compiler.Modules[file].Rules {
			ref := rule.Ref()
			isAllow, isDecision := ref.HasPrefix(allowRef), ref.HasPrefix(decisionRef)
			switch {
			case !isAllow && !isDecision:
			case file != mainFile:
				l.r.kind(warnCore, rule.Location,
					ref.GroundPrefix().String()+" is defined here too, beside "+mainFile+
						": a message may then travel without every listed rule admitting it", coreHint)
			case isAllow:
				l.coreAllow(rule)
			default:
				l.coreDecision(rule, l.c.modules[file].Rules[i])
			}
		}
	}
}

// coreAllow looks at each way to allow.
func (l *linter) coreAllow(rule *ast.Rule) {
	for one := rule; one != nil; one = one.Else {
		if one.Head.Value.Equal(ast.InternedTerm(false)) || l.asksTheList(one, map[*ast.Rule]bool{}) {
			continue
		}
		l.r.kind(warnCore, one.Location,
			"this `allow` does not ask "+rulesListString+": a message may travel without every listed rule admitting it", coreHint)
	}
}

// coreDecision looks at what the decision's own `allow` is.
func (l *linter) coreDecision(rule, written *ast.Rule) {
	for one, source := rule, written; one != nil && source != nil; one, source = one.Else, source.Else {
		object, ok := source.Head.Value.Value.(ast.Object)
		if !ok {
			continue
		}
		answer := object.Get(ast.StringTerm("allow"))
		if answer == nil || answer.Equal(ast.InternedTerm(false)) || l.leadsToTheList(answer, one) {
			continue
		}
		l.r.kind(warnCore, answer.Location,
			"the decision's `allow` does not ask "+rulesListString+
				": a message may travel without every listed rule admitting it", coreHint)
	}
}

// leadsToTheList says of what the source has behind "allow" whether the list of rules has a say in it.
func (l *linter) leadsToTheList(answer *ast.Term, rule *ast.Rule) bool {
	asks, local := false, false
	var visitor *ast.GenericVisitor
	visitor = ast.NewGenericVisitor(func(node any) bool {
		switch node := node.(type) {
		case ast.Call:
			if name, ok := node[0].Value.(ast.Ref); ok && builtinsByName()[name.String()] != nil {
				node = node[1:]
			}
			for _, term := range node {
				visitor.Walk(term)
			}
			return true
		case ast.Var:
			rules := l.c.compiler.GetRules(ast.MustParseRef("data.bus").Append(ast.StringTerm(string(node))))
			for _, one := range rules {
				// What each `allow` asks is said where that stands.
				asks = asks || one.Ref().HasPrefix(allowRef) || l.asksTheList(one, map[*ast.Rule]bool{})
			}
			local = local || len(rules) == 0 && !node.Equal(ast.InputRootDocument.Value)
		}
		return false
	})
	visitor.Walk(answer)
	return asks || local && l.asksTheList(rule, map[*ast.Rule]bool{})
}

// asksTheList says whether a rule, or one that it needs, reads the list of rules.
func (l *linter) asksTheList(rule *ast.Rule, seen map[*ast.Rule]bool) bool {
	if seen[rule] {
		return false
	}
	seen[rule] = true
	found := false
	branch := *rule
	branch.Else = nil // each way is looked at by itself
	walkRuleRefs(&branch, func(ref ast.Ref, _ *ast.Location) {
		if found {
			return
		}
		if ref.HasPrefix(rulesListRef) {
			found = true
			return
		}
		if !ref.HasPrefix(ast.DefaultRootRef) {
			return
		}
		for _, other := range l.c.compiler.GetRules(ref.ConstantPrefix()) {
			for one := other; one != nil && !found; one = one.Else {
				found = !one.Default && l.asksTheList(one, seen)
			}
		}
	})
	return found
}
