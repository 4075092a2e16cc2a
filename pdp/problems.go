package main

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/types"
)

const (
	reasonInvalid = "invalid"
	problemsMax   = 100
	textBytesMax  = 300
)

// problem is one reason why a constitution cannot be activated, where it is, and what to write instead.
type problem struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
	File    string `json:"file"`
	Row     int    `json:"row"`
	Col     int    `json:"col"`
	Text    string `json:"text"`
	Hint    string `json:"hint"`
}

func invalid(problems []problem) *failure {
	first := problems[0]
	message := first.Message
	switch {
	case first.File != "" && first.Row > 0:
		message = fmt.Sprintf("%s:%d: %s", first.File, first.Row, first.Message)
	case first.File != "":
		message = first.File + ": " + first.Message
	}
	return &failure{Code: reasonInvalid, Message: message, Details: problems}
}

// report gathers problems and adds to each the line that it is about.
type report struct {
	src      *source
	problems []problem
	names    *knownNames // what a misspelt name can stand for; nil: not known
}

func (r *report) add(p problem) {
	if len(r.problems) >= problemsMax {
		return
	}
	if p.Reason == "" {
		p.Reason = reasonInvalid
	}
	if p.Text == "" && p.Row > 0 {
		if file := r.src.file(p.File); file != nil {
			p.Text = lineOf(file.data, p.Row)
		}
	}
	if !slices.Contains(r.problems, p) {
		r.problems = append(r.problems, p)
	}
}

// at adds a problem at a place in a Rego file.
func (r *report) at(location *ast.Location, message, hint string) {
	r.kind("", location, message, hint)
}

// kind is at for something of another kind than a reason to reject.
func (r *report) kind(reason string, location *ast.Location, message, hint string) {
	p := problem{Reason: reason, Message: message, Hint: hint}
	if location != nil {
		p.File, p.Row, p.Col = location.File, location.Row, location.Col
	}
	r.add(p)
}

// opa adds what OPA's parser or compiler found.
func (r *report) opa(err error, fallbackFile string) {
	var list ast.Errors
	var one *ast.Error
	switch {
	case errors.As(err, &list):
		for _, found := range list {
			r.found(found)
		}
	case errors.As(err, &one):
		r.found(one)
	default:
		r.add(problem{Message: err.Error(), File: fallbackFile, Hint: "see the message"})
	}
}

// found adds an error of OPA's, with its details, and what was most likely meant.
func (r *report) found(e *ast.Error) {
	message, hint, at := e.Message, hintFor(e), e.Location
	switch detail := e.Details.(type) {
	case *ast.RefErrInvalidDetail:
		at = locationOf(detail.Ref, detail.Pos, at)
		hint = hintForRef(detail, hint)
	case *ast.RefErrUnsupportedDetail:
		at = locationOf(detail.Ref, detail.Pos, at)
		hint = fmt.Sprintf("%s is of the type %s, which has no fields", detail.Ref[:detail.Pos+1], types.Sprint(detail.Have))
	case *ast.UnificationErrDetail:
		message += fmt.Sprintf(": %s and %s are never equal", types.Sprint(detail.Left), types.Sprint(detail.Right))
	case *ast.ArgErrDetail:
		if given, takes := len(detail.Have), arityOf(e.Message); takes >= 0 && given != takes {
			message = fmt.Sprintf("%s takes %s and gets %d", nameIn(e.Message), valuesText(takes), given)
			hint = fmt.Sprintf("give it %s", valuesText(takes))
		} else {
			message += argumentsText(detail)
		}
	}
	if found := unsafeName.FindStringSubmatch(e.Message); found != nil && at != nil {
		if file := r.src.file(at.File); file != nil {
			at = locationOfName(found[1], at, lineOf(file.data, at.Row))
		}
	}
	if near := r.names.near(e); near != "" {
		hint = fmt.Sprintf("did you mean %s? %s", near, hint)
	}
	r.at(at, readable(message), hint)
}

var builtinError = regexp.MustCompile(`^([a-z0-9_.]+): (invalid argument|arity mismatch)`)

func nameIn(message string) string {
	if found := builtinError.FindStringSubmatch(message); found != nil {
		return found[1]
	}
	return ""
}

// arityOf is how many values the built-in takes that a message is about; -1 where it is about none.
func arityOf(message string) int {
	if declared := builtinsByName()[nameIn(message)]; declared != nil {
		return len(declared.Decl.FuncArgs().Args)
	}
	return -1
}

func valuesText(count int) string {
	if count == 1 {
		return "1 value"
	}
	return fmt.Sprintf("%d values", count)
}

// typeTextMax is where a type is too long to help.
const typeTextMax = 100

func argumentsText(detail *ast.ArgErrDetail) string {
	wanted := detail.Want.Args
	if len(wanted) == len(detail.Have)+1 && len(wanted) > 1 { // the last one is what it gives
		wanted = wanted[:len(wanted)-1]
	}
	text := fmt.Sprintf(": it takes %s and gets %s", typesText(wanted), typesText(detail.Have))
	if len(text) > 2*typeTextMax {
		return ""
	}
	return text
}

func typesText(list []types.Type) string {
	names := make([]string, len(list))
	for i, one := range list {
		names[i] = types.Sprint(one)
	}
	return "(" + strings.Join(names, ", ") + ")"
}

func lineOf(data []byte, row int) string {
	for range row - 1 {
		_, rest, found := bytes.Cut(data, []byte("\n"))
		if !found {
			return ""
		}
		data = rest
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	line = bytes.TrimRight(line, "\r")
	return strings.ToValidUTF8(string(line[:min(len(line), textBytesMax)]), "?")
}

// hints say what to write instead, by what OPA says; the first that matches counts.
var hints = []struct {
	pattern *regexp.Regexp
	hint    string
}{
	{regexp.MustCompile(`unexpected keyword, must be one of|unexpected keyword|future\.keywords`),
		"leave the import out: contains, every, if and in need none, and the future keywords not, and, or are not there; " +
			"for `not`, say what must be true and admit on that"},
	{regexp.MustCompile(`empty module`), "write a package, or remove the file"},
	{regexp.MustCompile(`rego\.v2|rego_v2`), "write `import rego.v1`, or no import: the constitution is Rego v1"},
	{regexp.MustCompile(`undefined function (time\.now_ns)`),
		"use input.clock, which the bus fills, so that a decision can be repeated"},
	{regexp.MustCompile(`undefined function (http\.send|net\.lookup_ip_addr|opa\.runtime|rand\.intn|uuid\.rfc4122)`),
		"put what it needs into data.json or input: a decision depends on the message and the constitution only"},
	{regexp.MustCompile(`undefined function (io\.jwt\.|crypto\.x509\.parse_and_verify)`),
		"it reads the clock; verify with io.jwt.verify_* or crypto.x509.parse_certificates and compare with input.clock"},
	{regexp.MustCompile(`undefined function (bits\.lsh|strings\.render_template)`),
		"it cannot be stopped and can fill the memory; use arithmetic or sprintf"},
	{regexp.MustCompile(`undefined function`),
		"check the spelling: the built-ins are those of OPA's policy reference, save what would not be the same each time, " +
			"and a function of yours needs its import"},
	{regexp.MustCompile(`byte-order mark`), markHint},
	{regexp.MustCompile(`undefined ref: input`), "check the spelling against the input's schema"},
	{regexp.MustCompile(`undefined ref`), "check the spelling, and that the rule or data is there"},
	{regexp.MustCompile(`undefined schema`), "add the file to bus/schema/, and name it schema.<name>"},
	{regexp.MustCompile(`remote reference loading disabled|unable to compile the schema`),
		"put the schema into bus/schema/ and refer to it with \"#/definitions/...\"; nothing is fetched"},
	{regexp.MustCompile(`assigned var .* unused|declared var .* unused|unused argument`), "use the variable, or call it _"},
	{regexp.MustCompile(`import .* unused`), "remove the import"},
	{regexp.MustCompile(`import must not shadow`), "remove one of the imports, or give it another name with `as`"},
	{regexp.MustCompile(`recursive|recursion`), "a rule cannot need itself; move the common part into a rule of its own"},
	{regexp.MustCompile(`conflicts with built-in`), "give the rule another name"},
	{regexp.MustCompile(`conflict.*data|conflicts with`), "data.json and a rule give the same name; rename one of the two"},
	{regexp.MustCompile(`conflicting rules|multiple default rules|conflicting`),
		"give the rule one kind and one default; put other values under another name"},
	{regexp.MustCompile("`if` keyword is required|`contains` keyword is required"), "write Rego v1: `rule if { … }`, `set contains x if { … }`"},
	{regexp.MustCompile(`var .* is unsafe`), "give the variable a value in the same body: `some x in …` or `x := …`"},
	{regexp.MustCompile(`rego_type_error|match error|invalid argument`), "compare and pass values of the same type"},
	{regexp.MustCompile(`deprecated`), "use what OPA's documentation names in its place"},
}

func hintFor(found *ast.Error) string {
	text := found.Code + ": " + found.Message
	if found.Details != nil {
		text += "\n" + strings.Join(found.Details.Lines(), "\n")
	}
	for _, h := range hints {
		if h.pattern.MatchString(text) {
			return h.hint
		}
	}
	switch found.Code {
	case ast.ParseErr:
		return "correct the syntax at this place; `opa fmt` and the Rego reference show the forms"
	case ast.TypeErr:
		return "compare and pass values of the same type"
	default:
		return "correct this line"
	}
}

// has says whether something was said of a file.
func (r *report) has(file string) bool {
	return slices.ContainsFunc(r.problems, func(one problem) bool { return one.File == file })
}
