package main

import (
	"encoding/binary"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
)

// pair is two constitutions that are asked the same questions, the one that decided and a candidate.
//
// A candidate usually differs in a rule folder or two. What the rest makes of an input then depends on the candidate
// only through what it can ask of those folders (rest): where both constitutions have the same to say to that, the
// candidate's decision is the original's, and it need not be evaluated. In any doubt it is.
type pair struct {
	original, candidate *constitution
	wanted              wanted // of an input, by either
	// The original's decision and what it says to the rest, and what the candidate says to the rest; nil: they differ
	// in more than that, or the rest may ask for more than is known.
	both, said *rego.PreparedEvalQuery
}

func newPair(original, candidate *constitution) *pair {
	p := &pair{original: original, candidate: candidate}
	if original.wanted != nil && candidate.wanted != nil {
		p.wanted = wantedOf(withoutCovered(append(append([][]string{}, original.reads.paths...), candidate.reads.paths...)))
	}
	refs, ok := p.asked()
	if !ok {
		return p
	}
	both := ast.ArrayTerm(ast.NewTerm(decisionRef), original.saying(refs))
	if query, err := original.prepared(ast.NewExpr(both)); err == nil {
		if said, err := candidate.prepared(ast.NewExpr(candidate.saying(refs))); err == nil {
			p.both, p.said = &query, &said
		}
	}
	return p
}

// asked are the refs by which the rest can ask the folders that differ; false when that is not all that matters.
func (p *pair) asked() ([]ast.Ref, bool) {
	folders, ok := changedFolders(p.original.src, p.candidate.src)
	if !ok || !p.original.reads.cacheable || !p.candidate.reads.cacheable { // `with` makes them say something else
		return nil, false
	}
	names := map[string]bool{}
	for _, c := range []*constitution{p.original, p.candidate} {
		rest := c.restOf(folders)
		if rest.unclear {
			return nil, false
		}
		for name := range rest.asks {
			names[name] = true
		}
	}
	refs := []ast.Ref{}
	for _, folder := range sortedKeys(folders) {
		// Where it is data in one of them only, the folders come in another order when the rest goes through all.
		if p.original.hasData(folderRef(folder)) != p.candidate.hasData(folderRef(folder)) {
			return nil, false
		}
		for _, name := range sortedKeys(names) {
			ref := ruleRef(folder, name)
			if p.original.hasData(ref) || p.candidate.hasData(ref) { // and so do the parts of a document
				return nil, false
			}
			refs = append(refs, ref)
		}
	}
	return refs, true
}

// hasData is true of what stands, as a whole or in part, in a data file.
func (c *constitution) hasData(ref ast.Ref) bool {
	keys := []string{}
	for _, step := range ref[1:] {
		keys = append(keys, string(step.Value.(ast.String)))
	}
	_, found := lookup(c.data, keys)
	return found
}

// saying is a list with one entry a ref: a list of its value, or of nothing where that is undefined.
func (c *constitution) saying(refs []ast.Ref) *ast.Term {
	entries := []*ast.Term{}
	for _, ref := range refs {
		entry := ast.ArrayTerm()
		if c.compiler.RuleTree.Find(ref) != nil {
			value := ast.VarTerm("value")
			entry = ast.ArrayComprehensionTerm(value, ast.NewBody(ast.Equality.Expr(value, ast.NewTerm(ref))))
		}
		entries = append(entries, entry)
	}
	return ast.ArrayTerm(entries...)
}

// reply is what a constitution answers: a decision (nil: undefined), or why there is none.
type reply struct {
	decision []byte
	fail     *failure
}

// evaluate asks both. Where `same` the candidate's reply is the original's.
func (p *pair) evaluate(text []byte, left time.Duration) (original, candidate reply, same bool) {
	until := time.Now().Add(left)
	input, fail := readInput(text, p.wanted)
	if fail != nil {
		return reply{fail: fail}, reply{fail: fail}, false
	}
	if p.both != nil {
		if decision, says, ok := p.first(input, time.Until(until)); ok {
			if p.saysToo(says, input, time.Until(until)) {
				return reply{decision: decision}, reply{}, true
			}
			return reply{decision: decision}, p.candidate.reply(input, time.Until(until)), false
		}
	}
	return p.original.reply(input, time.Until(until)), p.candidate.reply(input, time.Until(until)), false
}

// first evaluates the original: its decision and, from the same evaluation, what it says to the rest.
func (p *pair) first(input ast.Value, left time.Duration) (decision []byte, says string, ok bool) {
	found, fail := p.original.value(*p.both, input, left, keepTerm)
	if fail != nil || found == nil {
		return nil, "", false
	}
	parts := found.Value.(*ast.Array)
	document, err := ast.JSON(parts.Elem(0).Value)
	if err != nil {
		return nil, "", false
	}
	decision, fail = decisionText(document)
	return decision, parts.Elem(1).String(), fail == nil
}

// saysToo is whether the candidate says the very same to the rest: as OPA writes it, since 1 and 1.0 are equal and
// print differently, and a set and a list become one in JSON.
func (p *pair) saysToo(says string, input ast.Value, left time.Duration) bool {
	found, fail := p.candidate.value(*p.said, input, left, keepTerm)
	return fail == nil && found != nil && found.Value.(*ast.Array).String() == says
}

var keepTerm = rego.EvalGenerateJSON(func(term *ast.Term, _ *rego.EvalContext) (any, error) { return term.Value, nil })

func (c *constitution) reply(input ast.Value, left time.Duration) reply {
	if left <= 0 {
		return reply{fail: &failure{Code: codeTimeout, Message: "waited past the deadline"}}
	}
	decision, fail := c.decide(input, left)
	return reply{decision, fail}
}

// compare answers with one answer frame for each constitution: only the original's where the candidate's is the same.
func (s *server) compare(a *ask, original *constitution, started time.Time, left time.Duration) {
	candidate := s.find(a.other)
	if candidate == nil {
		s.out.sendFailure(a.id, unknownDigest(a.other))
		return
	}
	first, second, same := s.pairOf(original, candidate).evaluate(a.input, left)
	ended := time.Now()
	theCores.settle(ended)
	took := microseconds(ended.Sub(started))
	frames := first.frame(nil, took)
	if !same {
		frames = second.frame(frames, took)
	}
	if len(frames)+frameFixedBytes+len(took) > frameBytesMax {
		s.out.sendFailure(a.id, &failure{Code: "too_large", Message: "the answers are larger than a frame"})
		return
	}
	s.out.send(a.id, statusOK, took, frames)
}

func (r reply) frame(buffer []byte, took []byte) []byte {
	if r.fail != nil {
		return appendFrame(buffer, 0, statusError, r.fail.text())
	}
	return appendFrame(buffer, 0, statusOK, took, r.decision)
}

func microseconds(took time.Duration) []byte {
	return binary.LittleEndian.AppendUint32(nil, uint32(min(took.Microseconds(), 1<<32-1)))
}

// pairOf keeps what was found out about two constitutions as long as both are loaded.
func (s *server) pairOf(original, candidate *constitution) *pair {
	key := [2]string{original.src.digest, candidate.src.digest}
	s.mu.RLock()
	known := s.pairs[key]
	s.mu.RUnlock()
	if known != nil {
		return known
	}
	made := newPair(original, candidate)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.loaded[key[0]] == original && s.loaded[key[1]] == candidate {
		s.pairs[key] = made
	}
	return made
}
