package main

import (
	"bytes"
	"maps"
	"path"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// changedFolders are the rule folders bus/rules/<rule>/ in which two constitutions differ. It is false where they differ
// in anything else that decides: their texts, tests, signatures and revisions do not.
func changedFolders(one, other *source) (map[string]bool, bool) {
	changed := map[string]bool{}
	for _, sides := range [][2]*source{{one, other}, {other, one}} {
		for _, file := range sides[0].files {
			if !fileDecides(file.path) {
				continue
			}
			if twin := sides[1].file(file.path); twin != nil && bytes.Equal(twin.data, file.data) {
				continue
			}
			rule, ok := ruleOf(file.path)
			if !ok {
				return nil, false
			}
			changed[rule] = true
		}
	}
	return changed, true
}

// fileDecides says whether a decision can depend on a file. Of the manifest all that it can say otherwise is its
// revision, its name and its end (readManifest).
func fileDecides(name string) bool {
	return name != manifestFile && name != signaturesFile && path.Ext(name) != ".md" && !isTestFile(name)
}

// ruleOf is the name of the rule in whose folder a file is.
func ruleOf(file string) (string, bool) {
	below, inside := strings.CutPrefix(file, rulesFolder)
	name, _, nested := strings.Cut(below, "/")
	return name, inside && nested
}

// ruleFolders are all that a constitution has.
func (c *constitution) ruleFolders() map[string]bool {
	folders := map[string]bool{}
	for _, file := range c.src.files {
		if rule, ok := ruleOf(file.path); ok && fileDecides(file.path) {
			folders[rule] = true
		}
	}
	return folders
}

// rest is everything outside of some rule folders, and what it can ask of them.
type rest struct {
	folders map[string]bool
	asks    map[string]bool // names below data.bus.rules.<rule>, of whichever of the folders
	unclear bool            // it may ask for more than that
}

// restOf reads the compiled modules. What is asked of a folder is seen only where it is written as main.rego does it:
// data.bus.rules[<variable>].<name>, or [<variable>] behind it that is one of the texts in a list beside it. Whatever
// else may lead there is unclear: a rule of the folder by its name (OPA's index may look at that before it evaluates,
// and a function has no value to compare), all of data.bus.rules, a name that is found out during the evaluation.
func (c *constitution) restOf(folders map[string]bool) *rest {
	r := &rest{folders: folders, asks: map[string]bool{}}
	for _, file := range sortedKeys(c.compiler.Modules) {
		module := c.compiler.Modules[file]
		if rule, ok := ruleOf(file); ok && folders[rule] {
			r.unclear = r.unclear || !module.Package.Path.HasPrefix(folderRef(rule))
			continue
		}
		for _, rule := range module.Rules {
			r.defines(rule.Ref())
			for one := rule; one != nil; one = one.Else {
				r.reads(one)
			}
		}
	}
	return r
}

func folderRef(rule string) ast.Ref {
	return append(rulesPrefix.Copy(), ast.StringTerm(rule))
}

// defines notes a rule that may be a part of a folder's document although it stands elsewhere: asked for one name, OPA
// may then evaluate others too, and fail at them.
func (r *rest) defines(ref ast.Ref) {
	for folder := range r.folders {
		apart := false
		for i, step := range folderRef(folder) {
			if i >= len(ref) || !ast.IsConstant(ref[i].Value) && i > 0 {
				break
			}
			if apart = !ref[i].Equal(step); apart {
				break
			}
		}
		r.unclear = r.unclear || !apart
	}
}

// texts is what is known of variables at one place of a body: which texts they can be, or which are in the list.
type texts struct {
	is    map[ast.Var][]string
	holds map[ast.Var][]string
}

func (t texts) clone() texts {
	return texts{is: maps.Clone(t.is), holds: maps.Clone(t.holds)}
}

func (r *rest) reads(rule *ast.Rule) {
	known := texts{is: map[ast.Var][]string{}, holds: map[ast.Var][]string{}}
	r.body(rule.Body, known)
	r.walk(rule.Head, known)
}

// body follows the order in which expressions are evaluated: only what came before is known.
func (r *rest) body(body ast.Body, known texts) {
	for _, expr := range body {
		r.walk(expr, known)
		known.learn(expr)
	}
}

func (r *rest) walk(node any, known texts) {
	closure := func(body ast.Body, terms ...*ast.Term) bool {
		inner := known.clone()
		r.body(body, inner)
		for _, term := range terms {
			r.walk(term, inner)
		}
		return true
	}
	var visitor *ast.GenericVisitor
	visitor = ast.NewGenericVisitor(func(node any) bool {
		switch node := node.(type) {
		case *ast.Head:
			visitor.Walk(node.Reference) // the visitor itself leaves it out
		case ast.Body:
			return closure(node)
		case *ast.ArrayComprehension:
			return closure(node.Body, node.Term)
		case *ast.SetComprehension:
			return closure(node.Body, node.Term)
		case *ast.ObjectComprehension:
			return closure(node.Body, node.Key, node.Value)
		case ast.Ref:
			if node.HasPrefix(ast.DefaultRootRef) {
				r.ref(node, known)
				node = node[1:]
			}
			for _, step := range node {
				visitor.Walk(step)
			}
			return true
		}
		return false
	})
	visitor.Walk(node)
}

// ref notes what a ref to data asks of the folders.
func (r *rest) ref(ref ast.Ref, known texts) {
	for i, step := range rulesPrefix {
		if i < len(ref) && ref[i].Equal(step) {
			continue
		}
		if i < len(ref) {
			if _, named := ref[i].Value.(ast.String); named {
				return // it leads elsewhere
			}
		}
		r.unclear = true
		return
	}
	switch rule, name := stepAt(ref, len(rulesPrefix)), stepAt(ref, len(rulesPrefix)+1); rule := rule.(type) {
	case ast.String:
		r.unclear = r.unclear || r.folders[string(rule)]
	case ast.Var:
		r.named(name, known)
	default:
		r.unclear = true
	}
}

func stepAt(ref ast.Ref, at int) ast.Value {
	if at < len(ref) {
		return ref[at].Value
	}
	return nil
}

func (r *rest) named(name ast.Value, known texts) {
	switch name := name.(type) {
	case ast.String:
		r.asks[string(name)] = true
	case ast.Var:
		can, ok := known.is[name]
		for _, text := range can {
			r.asks[text] = true
		}
		r.unclear = r.unclear || !ok
	default:
		r.unclear = true
	}
}

// learn takes in what holds once an expression was true.
func (t texts) learn(expr *ast.Expr) {
	if expr.Negated || len(expr.With) > 0 || !expr.IsEquality() {
		return
	}
	for _, sides := range [][2]int{{0, 1}, {1, 0}} {
		name, ok := expr.Operand(sides[0]).Value.(ast.Var)
		if !ok {
			continue
		}
		switch value := expr.Operand(sides[1]).Value.(type) {
		case *ast.Array:
			if list, ok := constantTexts(value); ok {
				t.holds[name] = list
			}
		case ast.Ref:
			if from, ok := value[0].Value.(ast.Var); ok && len(value) == 2 && t.holds[from] != nil {
				t.is[name] = t.holds[from]
			}
		}
	}
}

func constantTexts(array *ast.Array) ([]string, bool) {
	list := []string{}
	for i := range array.Len() {
		text, ok := array.Elem(i).Value.(ast.String)
		if !ok {
			return nil, false
		}
		list = append(list, string(text))
	}
	return list, true
}
