package main

import (
	"encoding/binary"
	"maps"
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
	original, candidate *remembered
	wanted              wanted // of an input, by either
	comparable          bool   // what differs is only what these folders say
	changed             []int  // of the folders of either
}

func newPair(original, candidate *constitution) *pair {
	p := &pair{}
	if original.wanted != nil && candidate.wanted != nil {
		p.wanted = wantedOf(withoutCovered(append(append([][]string{}, original.reads.paths...), candidate.reads.paths...)))
	}
	sides := []*constitution{original, candidate}
	changed, names, ok := asked(original, candidate)
	p.comparable = ok
	folders := map[string]bool{}
	for _, c := range sides {
		maps.Copy(folders, c.ruleFolders())
	}
	if ok && (original.restOf(folders).unclear || candidate.restOf(folders).unclear) {
		folders = changed
	}
	for _, c := range sides {
		maps.Copy(names, c.restOf(folders).asks)
	}
	p.original = newRemembered(original, folders, sortedKeys(names))
	p.candidate = newRemembered(candidate, folders, sortedKeys(names))
	for i, name := range sortedKeys(folders) {
		if changed[name] {
			p.changed = append(p.changed, i)
		}
	}
	return p
}

// asked are the folders that differ and the names by which the rest can ask them; false when that is not all that
// matters.
func asked(original, candidate *constitution) (folders, names map[string]bool, ok bool) {
	names = map[string]bool{}
	folders, ok = changedFolders(original.src, candidate.src)
	if !ok || !original.reads.cacheable || !candidate.reads.cacheable { // `with` makes them say something else
		return folders, names, false
	}
	for _, c := range []*constitution{original, candidate} {
		rest := c.restOf(folders)
		if rest.unclear {
			return folders, names, false
		}
		maps.Copy(names, rest.asks)
	}
	for folder := range folders {
		// Where it is data in one of them only, the folders come in another order when the rest goes through all.
		if original.hasData(folderRef(folder)) != candidate.hasData(folderRef(folder)) {
			return folders, names, false
		}
		for _, ref := range refsTo(folder, sortedKeys(names)) {
			if original.hasData(ref) || candidate.hasData(ref) { // and so do the parts of a document
				return folders, names, false
			}
		}
	}
	return folders, names, true
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
	original, says := p.original.question(input, until).reply()
	question := p.candidate.question(input, until)
	if p.comparable && original.fail == nil && p.saysToo(says, question) {
		return original, reply{}, true
	}
	candidate, _ = question.reply()
	return original, candidate, false
}

// saysToo is whether the candidate's folders say the very same.
func (p *pair) saysToo(says []string, question *question) bool {
	for _, i := range p.changed {
		if says == nil {
			return false
		}
		if said, ok := question.says(p.candidate.folders[i]); !ok || said != says[i] {
			return false
		}
	}
	return true
}

var keepTerm = rego.EvalGenerateJSON(func(term *ast.Term, _ *rego.EvalContext) (any, error) { return term.Value, nil })

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
