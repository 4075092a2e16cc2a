package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// knownNames are the names that a constitution has, for whoever misspelt one.
type knownNames struct {
	modules map[string]*ast.Module
}

var (
	unsafeName   = regexp.MustCompile(`^var (\S+) is unsafe`)
	functionName = regexp.MustCompile(`undefined function (\S+)$`)
)

// near is the name that a misspelt rule, variable or function most likely stands for; "" when there is none.
func (k *knownNames) near(e *ast.Error) string {
	if k == nil || e.Location == nil {
		return ""
	}
	module := k.modules[e.Location.File]
	if module == nil {
		return ""
	}
	var known []string
	name := ""
	switch {
	case unsafeName.MatchString(e.Message):
		name = unsafeName.FindStringSubmatch(e.Message)[1]
		known = append(known, "input", "data", "true", "false", "null")
		for _, imported := range module.Imports {
			known = append(known, string(imported.Name()))
		}
		known = append(known, k.rulesOf(module, false)...)
		known = append(known, variablesNear(module, e.Location)...)
	case functionName.MatchString(e.Message):
		name = strings.TrimPrefix(functionName.FindStringSubmatch(e.Message)[1], module.Package.Path.String()+".")
		known = append(k.rulesOf(module, true), sortedKeys(builtinsByName())...)
		if meant := otherNames[name]; meant != "" && !slices.Contains(known, name) {
			return meant
		}
	}
	if name == "" {
		return ""
	}
	return closest(name, known)
}

// otherNames are what other languages call a built-in.
var otherNames = map[string]string{
	"is_list": "is_array", "is_dict": "is_object", "is_map": "is_object", "is_bool": "is_boolean", "is_text": "is_string",
	"is_str": "is_string", "is_int": "is_number", "is_integer": "is_number", "is_float": "is_number",
	"len": "count", "length": "count", "size": "count", "substr": "substring", "to_lower": "lower", "lowercase": "lower",
	"to_upper": "upper", "uppercase": "upper", "strip": "trim_space", "match": "regex.match", "matches": "regex.match",
	"join": "concat", "format": "sprintf", "starts_with": "startswith", "ends_with": "endswith", "int": "to_number",
	"get": "object.get", "keys": "object.keys", "average": "sum(…) / count(…)",
}

// rulesOf are the rules, or the functions, of a module's package.
func (k *knownNames) rulesOf(module *ast.Module, functions bool) []string {
	var names []string
	for _, other := range k.modules {
		if !other.Package.Path.Equal(module.Package.Path) {
			continue
		}
		for _, rule := range other.Rules {
			if (len(rule.Head.Args) > 0) == functions {
				names = append(names, string(rule.Head.Name))
			}
		}
	}
	return names
}

// variablesNear are the variables of the rule at a place.
func variablesNear(module *ast.Module, at *ast.Location) []string {
	var names []string
	for i, rule := range module.Rules {
		if rule.Location.Row > at.Row || i+1 < len(module.Rules) && module.Rules[i+1].Location.Row <= at.Row {
			continue
		}
		ast.WalkVars(rule, func(name ast.Var) bool {
			if !name.IsWildcard() && !name.IsGenerated() {
				names = append(names, string(name))
			}
			return false
		})
	}
	return names
}

// hintForRef says what a field of the input or a rule of a package may be called.
func hintForRef(detail *ast.RefErrInvalidDetail, otherwise string) string {
	var known []string
	for _, value := range detail.OneOf {
		if name, ok := value.(ast.String); ok {
			known = append(known, string(name))
		}
	}
	if len(known) == 0 || detail.Pos >= len(detail.Ref) {
		return otherwise
	}
	slices.Sort(known)
	whole := detail.Ref[:detail.Pos]
	hint := fmt.Sprintf("%s has %s", whole, strings.Join(known[:min(len(known), knownShownMax)], ", "))
	if whole.HasPrefix(ast.InputRootRef) {
		hint = "by the input's schema " + hint
	}
	wrong, ok := detail.Ref[detail.Pos].Value.(ast.String)
	if !ok {
		return hint
	}
	near := closest(string(wrong), known)
	if near == "" {
		return hint
	}
	meant := detail.Ref.Copy()
	meant[detail.Pos] = ast.StringTerm(near)
	return fmt.Sprintf("did you mean %s? %s", meant, hint)
}

// knownShownMax bounds a list of names in a hint.
const knownShownMax = 20

// locationOfName is where a name stands on the line of a place, at or behind it.
func locationOfName(name string, whole *ast.Location, line string) *ast.Location {
	if whole == nil || whole.Col < 1 || whole.Col > len(line) {
		return whole
	}
	found := regexp.MustCompile(`\b` + regexp.QuoteMeta(name) + `\b`).FindStringIndex(line[whole.Col-1:])
	if found == nil {
		return whole
	}
	return ast.NewLocation(nil, whole.File, whole.Row, whole.Col+found[0])
}

// locationOf is where a step of a ref stands, as far as that is on the ref's own line.
func locationOf(ref ast.Ref, position int, whole *ast.Location) *ast.Location {
	if whole == nil || position >= len(ref) {
		return whole
	}
	at := ref[position].Location
	if at == nil || at.File != whole.File || at.Row != whole.Row || at.Col < whole.Col {
		return whole
	}
	return at
}
