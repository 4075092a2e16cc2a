package main

import (
	"strings"
	"sync"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// remembered is a constitution that is asked about many messages, most of which agree in most of what is read.
//
// What a rule folder says is remembered by the values of the input that it reads, and the decision by what all folders
// say and the values that the rest reads: a decision depends on nothing else (rest). Only what is new is evaluated.
type remembered struct {
	*constitution
	paths   []inputPath
	folders []*folder // nil: nothing is remembered
	own     []int     // of the paths: those that the rest reads
	said    memory
}

// folder is a rule folder, and what the rest can ask of it.
type folder struct {
	name  string
	reads []int // of the paths
	query rego.PreparedEvalQuery
}

type inputPath []*ast.Term

// newRemembered prepares to remember what these folders, between which and the rest nothing but the names passes, say.
func newRemembered(c *constitution, folders map[string]bool, names []string) *remembered {
	r := &remembered{constitution: c}
	if !c.reads.cacheable || c.restOf(folders).unclear {
		return r
	}
	at := map[string]int{}
	for _, name := range sortedKeys(folders) {
		query, err := c.prepared(ast.NewExpr(c.saying(refsTo(name, names))))
		if err != nil {
			r.folders = nil
			return r
		}
		r.folders = append(r.folders, &folder{name: name, query: query, reads: r.places(at, c.readsFrom(folderRef(name), nil))})
	}
	r.own = r.places(at, c.readsFrom(decisionRef, folders))
	return r
}

func refsTo(folder string, names []string) []ast.Ref {
	refs := []ast.Ref{}
	for _, name := range names {
		refs = append(refs, ruleRef(folder, name))
	}
	return refs
}

// places are those of paths among all that are looked at, where each is once.
func (r *remembered) places(known map[string]int, paths [][]string) []int {
	found := []int{}
	for _, path := range paths {
		key := jsonText(path)
		place, ok := known[key]
		if !ok {
			place = len(r.paths)
			known[key] = place
			steps := inputPath{}
			for _, name := range path {
				steps = append(steps, ast.StringTerm(name))
			}
			r.paths = append(r.paths, steps)
		}
		found = append(found, place)
	}
	return found
}

// readsFrom are the paths of the input that what stands at a ref, or below it, can depend on. Whatever a ref to data may
// lead to is followed, up to its first step that is not written out, but not into the folders that are left out.
func (c *constitution) readsFrom(from ast.Ref, without map[string]bool) [][]string {
	found := reads{}
	seen := map[*ast.Rule]bool{}
	var follow func(ref ast.Ref)
	follow = func(ref ast.Ref) {
		for _, rule := range c.rulesAround(ref) {
			if seen[rule] || isBelow(rule.Ref(), without) {
				continue
			}
			seen[rule] = true
			walkRuleRefs(rule, func(ref ast.Ref, _ *ast.Location) {
				if ref.HasPrefix(ast.InputRootRef) {
					found.note(ref, nil, c.src)
				} else {
					follow(ref)
				}
			})
		}
	}
	follow(from)
	return withoutCovered(found.paths)
}

func isBelow(ref ast.Ref, folders map[string]bool) bool {
	name, _ := stepAt(ref, len(rulesPrefix)).(ast.String)
	return ref.HasPrefix(rulesPrefix) && folders[string(name)]
}

// rulesAround are all rules on the way to a ref's first step that is not written out, and all below that.
func (c *constitution) rulesAround(ref ast.Ref) []*ast.Rule {
	rules := []*ast.Rule{}
	node := c.compiler.RuleTree.Child(ref[0].Value)
	for _, step := range ref[1:] {
		if node == nil {
			return rules
		}
		if !ast.IsConstant(step.Value) {
			break
		}
		rules = append(rules, node.Values...)
		node = node.Child(step.Value)
	}
	if node != nil {
		node.DepthFirst(func(below *ast.TreeNode) bool {
			rules = append(rules, below.Values...)
			return false
		})
	}
	return rules
}

// question is one input, with what was found out about it.
type question struct {
	law    *remembered
	input  ast.Value
	until  time.Time
	values []string // at the paths, "" before they are looked at
	// What this evaluation has found of rules: asking for another one goes on from there.
	rules topdown.VirtualCache
}

func (r *remembered) question(input ast.Value, until time.Time) *question {
	return &question{law: r, input: input, until: until, values: make([]string, len(r.paths)), rules: topdown.NewVirtualCache()}
}

// says is what a folder says: a list as OPA writes it, since 1 and 1.0 are equal and print differently, and a set and a
// list become one in JSON. False, where it cannot be said.
func (q *question) says(one *folder) (string, bool) {
	key := q.key(one.name, one.reads).String()
	if said, ok := q.law.said.find(key); ok {
		return said, true
	}
	found, fail := q.law.value(one.query, q.input, time.Until(q.until), keepTerm, rego.EvalVirtualCache(q.rules))
	if fail != nil || found == nil {
		q.rules = topdown.NewVirtualCache() // where an evaluation broke off, rules are left undefined in it
		return "", false
	}
	said := found.Value.(*ast.Array).String()
	q.law.said.keep(key, said)
	return said, true
}

// key is equal for the same question about inputs that have the same values at these paths.
func (q *question) key(asked string, places []int) *strings.Builder {
	var key strings.Builder
	key.WriteString(asked)
	key.WriteByte(0)
	for _, place := range places {
		if q.values[place] == "" {
			q.values[place] = textAt(q.input, q.law.paths[place])
		}
		key.WriteString(q.values[place])
		key.WriteByte(0)
	}
	return &key
}

// textAt is the value at a path as OPA writes it, or a text that is no value.
func textAt(value ast.Value, path inputPath) string {
	for _, step := range path {
		object, ok := value.(ast.Object)
		if !ok {
			return "?"
		}
		term := object.Get(step)
		if term == nil {
			return "?"
		}
		value = term.Value
	}
	return value.String()
}

// reply is the decision, and what each folder says where all of them say something.
func (q *question) reply() (reply, []string) {
	left := time.Until(q.until)
	if left <= 0 {
		return reply{fail: &failure{Code: codeTimeout, Message: "waited past the deadline"}}, nil
	}
	says := make([]string, len(q.law.folders))
	key := q.key("", q.law.own)
	for i := range says {
		said, ok := q.says(q.law.folders[i])
		if !ok {
			says = nil
			break
		}
		says[i] = said
		key.WriteString(said)
		key.WriteByte(0)
	}
	if len(says) == 0 {
		decision, fail := q.law.decide(q.input, time.Until(q.until))
		return reply{decision, fail}, nil
	}
	if known, ok := q.law.said.find(key.String()); ok {
		return reply{decision: []byte(known)}, says
	}
	decision, fail := q.law.decide(q.input, time.Until(q.until), rego.EvalVirtualCache(q.rules))
	if fail != nil {
		return reply{fail: fail}, nil
	}
	q.law.said.keep(key.String(), string(decision))
	return reply{decision: decision}, says
}

// saidBytesMax is how much is remembered before that begins anew.
const saidBytesMax = 16 << 20

// memory is what was said, by what it depends on.
type memory struct {
	mu    sync.Mutex
	said  map[string]string
	bytes int
}

func (m *memory) find(key string) (string, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	said, ok := m.said[key]
	return said, ok
}

func (m *memory) keep(key, said string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bytes += len(key) + len(said); m.said == nil || m.bytes > saidBytesMax {
		m.said, m.bytes = map[string]string{}, len(key)+len(said)
	}
	m.said[key] = said
}
