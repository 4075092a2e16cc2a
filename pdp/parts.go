package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// The parts of a rule that main.rego gathers (contract §4), and the bus's bounds for what stands in them.
var (
	ruleParts  = []string{admitName, "code", "message", "remedy", "hold", "remember", "obligations"}
	textParts  = []string{"code", "message", "remedy"}
	listParts  = []string{"hold", "remember", "obligations"}
	scopes     = []string{"sender", "recipient", "conversation", "tenant"}
	pathForm   = regexp.MustCompile(`^(/([^~]|~[01])*)?$`)
	busCounted = []string{"sent", "refused"}
)

const (
	factCharsMax   = 256
	approversMax   = 100
	holdSecondsMax = 3.2e9
	integerMax     = 1<<53 - 1
)

// kept is of which kind a fact is, and where that is said.
type kept struct {
	kind kind
	at   *ast.Location
}

// part is one literal of a rule, and what is wrong with it.
type part struct {
	l      *linter
	object ast.Object
	at     *ast.Location
}

// parts looks at what rules say beside yes and no: a mistake there refuses every message that it is said of.
func (l *linter) parts() {
	remembered := map[string]kept{} // by scope and key, the first
	for _, file := range sortedKeys(l.c.modules) {
		module := l.c.modules[file]
		pkg := module.Package.Path
		if len(pkg) != len(rulesPrefix)+1 || !pkg.HasPrefix(rulesPrefix) {
			continue
		}
		for _, rule := range module.Rules {
			name := string(rule.Head.Name)
			switch {
			case len(rule.Head.Args) > 0:
			case slices.Contains(textParts, name):
				l.textPart(rule)
			case slices.Contains(listParts, name):
				l.listPart(rule, name, remembered)
			case name == admitName && slices.ContainsFunc(module.Rules, canAdmit):
				l.admitPart(rule)
			default:
				l.misspelt(module, rule, name)
			}
		}
	}
}

func (l *linter) wrongPart(at *ast.Location, message, hint string) {
	l.r.kind(warnPart, at, message+": a message of which this is said is refused (policy_malformed)", hint)
}

func (l *linter) textPart(rule *ast.Rule) {
	for one := rule; one != nil; one = one.Else {
		value := one.Head.Value
		if value == nil || one.Head.RuleKind() != ast.SingleValue {
			l.wrongPart(one.Location, fmt.Sprintf("%s is a text and not a set or an object", rule.Head.Name),
				fmt.Sprintf("write `%s := \"…\"`", rule.Head.Name))
			continue
		}
		if k := kindOfLiteral(value); k != kindUnknown && k != kindText {
			l.wrongPart(value.Location, fmt.Sprintf("%s is %s, and has to be a text", rule.Head.Name, k),
				fmt.Sprintf("write `%s := \"…\"`", rule.Head.Name))
		}
	}
}

// admitPart names an `admit` of another value than true where others admit: where none does, that is said already.
func (l *linter) admitPart(rule *ast.Rule) {
	for one := rule; one != nil && !rule.Default; one = one.Else {
		value := one.Head.Value
		if value == nil || !ast.IsConstant(value.Value) || kindOfValue(value.Value) == kindBoolean {
			continue
		}
		l.r.kind(warnPart, value.Location, fmt.Sprintf("`admit` is %s here, and only true admits", value.Value), "write `admit if { … }`")
	}
}

func canAdmit(rule *ast.Rule) bool {
	value := rule.Head.Value
	return string(rule.Head.Name) == admitName && !rule.Default && value != nil &&
		(!ast.IsConstant(value.Value) || value.Equal(ast.InternedTerm(true)))
}

// misspelt names a rule that nothing asks and that is called almost like a part.
func (l *linter) misspelt(module *ast.Module, rule *ast.Rule, name string) {
	near := closest(name, ruleParts)
	if near == "" || l.asked(module, name) {
		return
	}
	l.r.kind(warnPart, rule.Location, fmt.Sprintf("nothing asks for `%s`", name),
		fmt.Sprintf("did you mean `%s`? what a rule says is %s", near, strings.Join(ruleParts, ", ")))
}

// asked says whether anything else in what decides may name this rule.
func (l *linter) asked(module *ast.Module, name string) bool {
	found := false
	for _, other := range l.c.modules {
		same := other.Package.Path.Equal(module.Package.Path)
		for _, rule := range other.Rules {
			own := same && string(rule.Head.Name) == name
			ast.WalkTerms(rule, func(term *ast.Term) bool {
				switch value := term.Value.(type) {
				case ast.Var:
					found = found || same && !own && string(value) == name
				case ast.String:
					found = found || !own && string(value) == name
				}
				return found
			})
		}
		for _, imported := range other.Imports {
			found = found || strings.HasSuffix(imported.Path.String(), "."+name)
		}
	}
	return found
}

// listPart looks at a definition of hold, remember or obligations.
func (l *linter) listPart(rule *ast.Rule, name string, remembered map[string]kept) {
	entry := rule.Head.Key
	form := fmt.Sprintf("write `%s contains {…}`", name)
	if rule.Head.RuleKind() == ast.SingleValue {
		entry = nil
		switch value := rule.Head.Value.Value.(type) {
		case ast.Object:
			if len(rule.Head.Reference) == 1 {
				l.wrongPart(rule.Location, name+" is one object, and has to be a set of objects", form)
			}
		case ast.Null, ast.Boolean, ast.Number, ast.String:
			if !rule.Default || kindOfValue(value) != kindBoolean {
				l.wrongPart(rule.Location, fmt.Sprintf("%s is %s, and has to be a set of objects", name, kindOfValue(value)), form)
			}
		case *ast.Array:
			value.Foreach(func(one *ast.Term) { l.entry(name, one, rule, remembered) })
		case ast.Set:
			value.Foreach(func(one *ast.Term) { l.entry(name, one, rule, remembered) })
		}
	}
	if entry != nil {
		l.entry(name, entry, rule, remembered)
	}
}

// entry looks at one literal, also where a variable stands for it.
func (l *linter) entry(name string, term *ast.Term, rule *ast.Rule, remembered map[string]kept) {
	if variable, ok := term.Value.(ast.Var); ok {
		if term = assigned(rule.Body, variable); term == nil {
			return
		}
	}
	object, ok := term.Value.(ast.Object)
	if !ok {
		if k := kindOfLiteral(term); k != kindUnknown {
			l.wrongPart(termAt(term, rule.Location), fmt.Sprintf("an entry of %s is %s, and has to be an object", name, k), "see docs/reference/decision.md")
		}
		return
	}
	p := part{l: l, object: object, at: termAt(term, rule.Location)}
	switch name {
	case "hold":
		p.hold()
	case "remember":
		p.remember(remembered)
	default:
		p.obligation()
	}
}

func termAt(term *ast.Term, otherwise *ast.Location) *ast.Location {
	if term.Location != nil && term.Location.Row > 0 {
		return term.Location
	}
	return otherwise
}

// assigned is what a body gives to a variable, where that is written out.
func assigned(body ast.Body, variable ast.Var) *ast.Term {
	for _, expr := range body {
		if expr.IsAssignment() && expr.Operand(0).Value.Compare(variable) == 0 {
			return expr.Operand(1)
		}
	}
	return nil
}

// kindOfLiteral is the kind of what is written out, whatever stands in it.
func kindOfLiteral(term *ast.Term) kind {
	return kindOfValue(term.Value)
}

func (p part) wrong(key, message, hint string) {
	where := p.at
	p.object.Foreach(func(name, value *ast.Term) {
		if name.Equal(ast.StringTerm(key)) && value.Location != nil && value.Location.Row > 0 {
			where = value.Location
		}
	})
	p.l.wrongPart(where, message, hint)
}

// get is the value of a key, and whether it is of one of these kinds; a value that is not written out can be.
func (p part) get(key, takes string, wanted ...kind) (*ast.Term, bool) {
	value := p.object.Get(ast.StringTerm(key))
	if value == nil {
		return nil, false
	}
	k := kindOfLiteral(value)
	if k == kindUnknown {
		return nil, true
	}
	if !slices.Contains(wanted, k) {
		p.wrong(key, fmt.Sprintf("`%s` is %s, and takes %s", key, k, takes), fmt.Sprintf("write `%q: …` with %s", key, takes))
		return nil, true
	}
	return value, true
}

// keys says whether all names are written out, and names those that are not taken.
func (p part) keys(what string, known ...string) bool {
	all := true
	p.object.Foreach(func(name, _ *ast.Term) {
		text, ok := name.Value.(ast.String)
		if !ok {
			all = false
			return
		}
		if slices.Contains(known, string(text)) {
			return
		}
		hint := "it takes " + strings.Join(known, ", ")
		if near := closest(string(text), known); near != "" {
			hint = fmt.Sprintf("did you mean %q? %s", near, hint)
			all = false // the one that is meant is not missed as well
		}
		p.wrong(string(text), fmt.Sprintf("%s has no %q", what, string(text)), hint)
	})
	return all
}

func (p part) number(key, takes string, fits func(float64) bool) {
	value, _ := p.get(key, takes, kindNumber)
	if value == nil {
		return
	}
	if number, ok := value.Value.(ast.Number).Float64(); ok && !fits(number) {
		p.wrong(key, fmt.Sprintf("`%s` is %s, and takes %s", key, value, takes), fmt.Sprintf("write `%q: …` with %s", key, takes))
	}
}

func isWhole(number float64) bool { return number == float64(int64(number)) }

func (p part) hold() {
	all := p.keys("what is held", "roles", "approvers", "expires_in", "rule")
	p.number("approvers", "a whole number from 1 to 100", func(n float64) bool { return isWhole(n) && n >= 1 && n <= approversMax })
	p.number("expires_in", "seconds, over 0 and at most 3.2e9", func(n float64) bool { return n > 0 && n <= holdSecondsMax })
	const takes = `a list of texts, at least one: ["finance"]`
	roles, given := p.get("roles", takes, kindList, kindSet)
	if !given && all {
		p.wrong("", "what is held has no `roles`", `write "roles": ["finance"]: an approver has one of them`)
	}
	if roles == nil {
		return
	}
	elements, _ := elementsOf(roles.Value)
	if len(elements) == 0 {
		p.wrong("roles", "`roles` is empty, and nobody could approve", `write "roles": ["finance"]: an approver has one of them`)
	}
	for _, one := range elements {
		if k := kindOfValue(one); k != kindUnknown && k != kindText {
			p.wrong("roles", fmt.Sprintf("`roles` has %s in it, and takes %s", k, takes), "write the names of roles as texts")
		}
	}
}

func (p part) remember(remembered map[string]kept) {
	all := p.keys("what is remembered", "scope", "key", "value", "add")
	scope, given := p.get("scope", "one of "+strings.Join(scopes, ", "), kindText)
	if !given && all {
		p.wrong("", "what is remembered has no `scope`", "it is one of "+strings.Join(scopes, ", "))
	}
	if scope != nil && !slices.Contains(scopes, plain(scope)) {
		hint := "it is one of " + strings.Join(scopes, ", ")
		if near := closest(plain(scope), append([]string{"conversation"}, scopes...)); near != "" {
			hint = fmt.Sprintf("did you mean %q? %s", near, hint)
		} else if strings.HasPrefix("conversation", plain(scope)) && plain(scope) != "" {
			hint = `did you mean "conversation"? ` + hint
		}
		p.wrong("scope", fmt.Sprintf("the scope %s is not known", scope), hint)
	}
	key, given := p.get("key", "a text of 1 to 256 characters", kindText)
	if !given && all {
		p.wrong("", "what is remembered has no `key`", "give the fact a name of 1 to 256 characters")
	}
	if key != nil {
		switch name := plain(key); {
		case slices.Contains(busCounted, name):
			p.wrong("key", fmt.Sprintf("the key %s is the bus's own: it counts that itself", key), "choose another key")
		case name == "" || len([]rune(name)) > factCharsMax:
			p.wrong("key", fmt.Sprintf("a key of %d characters", len([]rune(name))), "give the fact a name of 1 to 256 characters")
		}
	}
	value, hasValue := p.get("value", "a text or a number", kindText, kindNumber)
	_, hasAdd := p.get("add", "a whole number within ±(2^53-1)", kindNumber)
	p.number("add", "a whole number within ±(2^53-1)", func(n float64) bool { return isWhole(n) && n >= -integerMax && n <= integerMax })
	switch {
	case hasValue && hasAdd:
		p.wrong("add", "it has `value` and `add`", "keep one of the two: `value` for a text or a number, `add` for a sum")
	case !hasValue && !hasAdd && all:
		p.wrong("", "it has neither `value` nor `add`", "write `value` with a text or a number, or `add` with a whole number")
	}
	have := kept{kindUnknown, p.at}
	switch {
	case hasAdd:
		have.kind = kindNumber
	case value != nil:
		have.kind = kindOfLiteral(value)
	}
	if scope != nil && key != nil && have.kind != kindUnknown {
		p.sameKind(scope, key, have, remembered)
	}
}

// sameKind names a key that gets texts here and numbers there.
func (p part) sameKind(scope, key *ast.Term, have kept, remembered map[string]kept) {
	place := plain(scope) + " " + plain(key)
	before, found := remembered[place]
	if !found {
		remembered[place] = have
		return
	}
	if before.kind != have.kind {
		p.wrong("value", fmt.Sprintf("the key %s of the %s is %s here and %s in %s:%d", key, plain(scope), have.kind, before.kind,
			before.at.File, before.at.Row), "a key keeps to one kind: use one key for texts and another for numbers")
	}
}

// obligationFields are the conditions that the bus can keep, each with what it takes.
var obligationFields = map[string]string{"handler_timeout": "seconds", "deliver_only_to": "agent", "redact": "path"}

func (p part) obligation() {
	name, given := p.get("type", "one of "+strings.Join(sortedKeys(obligationFields), ", "), kindText)
	if !given {
		if p.keysWritten() {
			p.wrong("", "an obligation has no `type`", "it is one of "+strings.Join(sortedKeys(obligationFields), ", "))
		}
		return
	}
	if name == nil {
		return
	}
	field, known := obligationFields[plain(name)]
	if !known {
		hint := "it is one of " + strings.Join(sortedKeys(obligationFields), ", ")
		if near := closest(plain(name), sortedKeys(obligationFields)); near != "" {
			hint = fmt.Sprintf("did you mean %q? %s", near, hint)
		}
		p.l.r.kind(warnPart, termAt(name, p.at),
			fmt.Sprintf("the bus cannot keep the obligation %s: a message of which this is said is refused (obligation_unknown)", name), hint)
		return
	}
	all := p.keys("the obligation "+plain(name), "type", field)
	if p.object.Get(ast.StringTerm(field)) == nil {
		if all {
			p.wrong("", fmt.Sprintf("the obligation %s has no `%s`", plain(name), field), fmt.Sprintf("write `%q: …`", field))
		}
		return
	}
	switch field {
	case "seconds":
		p.number(field, "a number over 0", func(n float64) bool { return n > 0 })
	case "agent":
		p.get(field, "the id of an agent", kindText)
	case "path":
		const takes = `a JSON pointer into the payload, "/card/number"`
		if value, _ := p.get(field, takes, kindText); value != nil && !pathForm.MatchString(plain(value)) {
			p.wrong(field, fmt.Sprintf("`path` is %s, and takes %s", value, takes), "begin it with /, and separate the names with /")
		}
	}
}

// keysWritten says whether all names are written out.
func (p part) keysWritten() bool {
	all := true
	p.object.Foreach(func(name, _ *ast.Term) { all = all && ast.IsConstant(name.Value) })
	return all
}
