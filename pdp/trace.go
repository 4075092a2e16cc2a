package main

import (
	"context"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// eventsMax bounds a trace; what happens after so many events is not seen.
const eventsMax = 200_000

// wantedMax bounds how often an expression is looked at for the one time that it broke.
const wantedMax = 100

// span is one body while it is evaluated: of a rule, of a `not`, of an element of `every`.
type span struct {
	node     ast.Node
	parent   *span
	under    *ast.Expr   // what the parent was evaluating
	withs    []*ast.With // what is replaced in here
	current  *ast.Expr
	replaced []*ast.With // what `current` replaces
	failed   *moment     // the furthest expression that was not true
	exited   *moment     // when it was true as a whole, for the first time
	children []*span
}

// moment is what stood in the variables when something happened.
type moment struct {
	expr  *ast.Expr
	span  *span
	withs []*ast.With
	input ast.Value
	vars  map[ast.Var]ast.Value
}

// recorder keeps of a trace what an explanation needs. Variables are read as events come: afterwards they are gone.
type recorder struct {
	spans  map[uint64]*span
	root   *span
	events int
	wanted *ast.Location // an expression of which each failure is kept
	there  []*moment
}

func newRecorder() *recorder { return &recorder{spans: map[uint64]*span{}} }

func (r *recorder) Enabled() bool               { return true }
func (r *recorder) Config() topdown.TraceConfig { return topdown.TraceConfig{} }

func (r *recorder) TraceEvent(event topdown.Event) {
	if r.events++; r.events > eventsMax {
		return
	}
	if event.Op == topdown.EnterOp {
		r.enter(&event)
		return
	}
	at := r.spans[event.QueryID]
	if at == nil {
		return
	}
	expr, _ := event.Node.(*ast.Expr)
	switch event.Op {
	case topdown.EvalOp, topdown.RedoOp:
		if expr == nil {
			return
		}
		at.current, at.replaced = expr, plugWiths(&event, expr.With)
	case topdown.FailOp:
		if expr != nil && r.wanted != nil && len(r.there) < wantedMax && expr.Location.Equal(r.wanted) {
			r.there = append(r.there, at.moment(&event, expr, variablesOf(withGenerated(expr))))
		}
		// The domain of an `every` is a span of its own, and fails as the expression that it is.
		if expr == nil || at.node == ast.Node(expr) || at.failed != nil && at.failed.expr.Index >= expr.Index {
			return
		}
		at.failed = at.moment(&event, expr, variablesOf(withGenerated(expr)))
	case topdown.ExitOp:
		if rule, ok := event.Node.(*ast.Rule); ok && at.exited == nil {
			at.exited = at.moment(&event, nil, variablesOf(rule.Body, rule.Head))
		}
	}
}

func (r *recorder) enter(event *topdown.Event) {
	at := &span{node: event.Node, parent: r.spans[event.ParentID]}
	if at.parent == nil {
		r.root = at
	} else {
		at.under = at.parent.current
		at.withs = at.parent.inForce()
		at.parent.children = append(at.parent.children, at)
	}
	r.spans[event.QueryID] = at
}

// inForce is what is replaced while `current` is evaluated.
func (f *span) inForce() []*ast.With {
	return append(append([]*ast.With{}, f.withs...), f.replaced...)
}

func (f *span) moment(event *topdown.Event, expr *ast.Expr, variables []ast.Var) *moment {
	m := &moment{expr: expr, span: f, withs: f.inForce(), vars: map[ast.Var]ast.Value{}}
	if expr == nil {
		m.withs = f.withs
	}
	if input := event.Input(); input != nil {
		m.input = input.Value
	}
	for _, name := range variables {
		if value := event.Plug(ast.NewTerm(name)).Value; value.IsGround() {
			m.vars[name] = value
		}
	}
	return m
}

func plugWiths(event *topdown.Event, withs []*ast.With) []*ast.With {
	var plugged []*ast.With
	for _, with := range withs {
		value := event.Plug(with.Value)
		if _, isVar := value.Value.(ast.Var); !isVar {
			plugged = append(plugged, &ast.With{Target: with.Target, Value: value})
		}
	}
	return plugged
}

// withGenerated is an expression of the compiled policy with all others that came from the same one of the source.
func withGenerated(expr *ast.Expr) []*ast.Expr {
	return append([]*ast.Expr{expr}, expr.CogeneratedExprs()...)
}

func variablesOf(nodes ...any) []ast.Var {
	seen := ast.NewVarSet()
	for _, node := range nodes {
		if exprs, ok := node.([]*ast.Expr); ok {
			for _, expr := range exprs {
				ast.WalkVars(expr, func(name ast.Var) bool { seen.Add(name); return false })
			}
			continue
		}
		ast.WalkVars(node, func(name ast.Var) bool { seen.Add(name); return false })
	}
	delete(seen, ast.DefaultRootDocument.Value.(ast.Var))
	delete(seen, ast.InputRootDocument.Value.(ast.Var))
	return seen.Sorted()
}

// asker asks a compiled policy about single values, with what is replaced.
type asker struct {
	c        *constitution
	compiler *ast.Compiler
	ctx      context.Context
	left     int // questions
	reads    map[*ast.Rule]bool
	known    map[string][]way
}

// asksMax bounds the questions of one explanation.
const asksMax = 2000

func (c *constitution) asker(ctx context.Context, compiler *ast.Compiler) *asker {
	return &asker{
		c: c, compiler: compiler, ctx: ctx, left: asksMax, reads: map[*ast.Rule]bool{}, known: map[string][]way{},
	}
}

// ask evaluates a term; nil when it is undefined.
func (a *asker) ask(term *ast.Term, input ast.Value, withs []*ast.With, options ...rego.EvalOption) (*ast.Term, error) {
	if a.left--; a.left < 0 {
		return nil, nil
	}
	var found *ast.Term
	expr := ast.Equality.Expr(ast.VarTerm("answer"), term)
	expr.With = lastOfEach(withs)
	query, err := rego.New(
		rego.ParsedQuery(ast.NewBody(expr)),
		rego.Compiler(a.compiler), rego.Store(a.c.store), rego.Transaction(a.c.txn),
		rego.Capabilities(capabilities()), rego.StrictBuiltinErrors(true),
		rego.GenerateJSON(func(term *ast.Term, _ *rego.EvalContext) (any, error) {
			found = term
			return nil, nil
		}),
	).PrepareForEval(a.ctx)
	if err != nil {
		return nil, err
	}
	if input != nil {
		options = append(options, rego.EvalParsedInput(input))
	}
	options = append(options, rego.EvalTransaction(a.c.txn))
	_, err = query.Eval(a.ctx, options...)
	return found, err
}

// trace evaluates a term with every rule and every body of it, also where the rule index or the first answer would end
// the search: so each way is seen. What comes of it is not what decides.
func (a *asker) trace(term *ast.Term, input ast.Value, withs []*ast.With) *recorder {
	r := newRecorder()
	_, _ = a.ask(term, input, withs, rego.EvalQueryTracer(r), rego.EvalRuleIndexing(false), rego.EvalEarlyExit(false))
	return r
}

// lastOfEach keeps of several replacements of one place the innermost.
func lastOfEach(withs []*ast.With) []*ast.With {
	var kept []*ast.With
	for i, with := range withs {
		later := false
		for _, other := range withs[i+1:] {
			later = later || other.Target.Equal(with.Target)
		}
		if !later {
			kept = append(kept, with.Copy())
		}
	}
	return kept
}
