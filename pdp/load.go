package main

import (
	"context"
	"errors"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
)

const (
	manifestFile   = ".manifest"
	signaturesFile = ".signatures.json"
	dataFileName   = "data.json"
	schemaFolder   = "bus/schema/"
	rulesFolder    = "bus/rules/"
	rulesListFile  = "bus/manifest/data.json"
	mainFile       = "bus/main.rego"
	root           = "bus"

	compileErrorsMax = 50
)

var decisionRef = ast.MustParseRef("data.bus.decision")

// constitution is a source that has passed every check but its tests, ready to decide. What it decides by never changes.
type constitution struct {
	src       *source
	manifest  manifest
	rules     []string
	modules   map[string]*ast.Module // parsed, without tests
	tests     map[string]*ast.Module // parsed
	data      map[string]any
	schemas   *ast.SchemaSet
	compiler  *ast.Compiler
	reads     reads
	wanted    wanted // of an input; nil: all of it
	store     storage.Store
	base      *baseData
	txn       storage.Transaction // open for reading as long as the constitution lives: nothing ever writes
	query     rego.PreparedEvalQuery
	deadlines deadlines
	dataFiles []string
}

// summary is the answer to load.
type summary struct {
	Digest    string     `json:"digest"`
	Revision  string     `json:"revision"`
	Name      string     `json:"name"`
	NotAfter  *string    `json:"not_after"`
	Signed    bool       `json:"signed"`
	Rules     []string   `json:"rules"`
	ReadPaths [][]string `json:"read_paths"`
	Cacheable bool       `json:"cacheable"`
	FactsRead bool       `json:"facts_read"`
	Source    string     `json:"source"`
}

// summary describes the constitution as this source brought it: the signatures are not part of the digest.
func (c *constitution) summary(src *source) summary {
	return summary{
		Digest:    c.src.digest,
		Revision:  c.manifest.Revision,
		Name:      c.manifest.Name,
		NotAfter:  c.manifest.NotAfter,
		Signed:    src.file(signaturesFile) != nil,
		Rules:     orEmpty(c.rules),
		ReadPaths: orEmpty(c.reads.paths),
		Cacheable: c.reads.cacheable,
		FactsRead: c.reads.facts(),
		Source:    src.kind,
	}
}

// compileConstitution makes a source ready to decide, or says everything that is wrong with it. The constitution comes
// back as far as it could be read even then, so that a report can name it.
func compileConstitution(src *source) (*constitution, []problem) {
	c := &constitution{src: src, modules: map[string]*ast.Module{}, tests: map[string]*ast.Module{}}
	r := &report{src: src}
	checkFileKinds(src, r)
	c.manifest = readManifest(src, r)
	c.readData(r)
	c.readSchemas(r)
	c.parse(r)
	c.rules = c.listedRules(r)
	c.checkRuleFolders(r)
	if len(r.problems) > 0 {
		// A module that does not parse makes half of what the compiler would say wrong.
		return c, r.problems
	}
	r.names = &knownNames{modules: c.modules}
	c.compile(r)
	if len(r.problems) > 0 {
		return c, r.problems
	}
	c.checkDataRefs(r)
	c.reads = findReads(c.compiler, src)
	if c.reads.cacheable {
		c.wanted = wantedOf(c.reads.paths)
	}
	if len(r.problems) == 0 {
		c.prepare(r)
	}
	return c, r.problems
}

// checkFileKinds lets through only what is known, so that no tool can read more out of a bundle than was decided on.
func checkFileKinds(src *source, r *report) {
	for _, file := range src.files {
		name := path.Base(file.path)
		hidden := strings.HasPrefix(file.path, ".") || strings.Contains(file.path, "/.")
		switch {
		case file.path == manifestFile, file.path == signaturesFile:
		case isEditorFile(name):
			r.add(problem{Message: editorMessage, File: file.path, Hint: editorHint})
		case hidden || strings.HasPrefix(file.path, "-"):
			r.add(problem{Message: "a hidden file or folder does not belong here", File: file.path, Hint: "remove it"})
		case file.path == schemaFolder+dataFileName:
			r.add(problem{
				Message: "OPA would read it as data, not as a schema", File: file.path, Hint: "give the schema another name",
			})
		case strings.HasSuffix(name, ".rego"), strings.HasSuffix(name, ".md"), name == dataFileName:
		case strings.HasSuffix(name, ".json") && path.Dir(file.path)+"/" == schemaFolder:
		default:
			r.add(problem{
				Message: "a file of this kind does not belong here", File: file.path,
				Hint: "a constitution has .manifest, .signatures.json, *.md, *.rego, data.json and bus/schema/*.json; " +
					"remove it, or put data into a data.json",
			})
		}
	}
}

// readData merges every data.json at the place that its folder names, as OPA does; nothing may be there twice.
func (c *constitution) readData(r *report) {
	c.data = map[string]any{}
	for i := range c.src.files {
		file := &c.src.files[i]
		if path.Base(file.path) != dataFileName {
			continue
		}
		value, ok := r.json(file)
		if !ok {
			continue
		}
		c.dataFiles = append(c.dataFiles, file.path)
		var keys []string
		if folder := path.Dir(file.path); folder != "." {
			keys = strings.Split(folder, "/")
		}
		for _, key := range slices.Backward(keys) {
			value = map[string]any{key: value}
		}
		object, isObject := value.(map[string]any)
		if !isObject {
			r.add(problem{Message: "it is not an object", File: file.path, Row: 1, Hint: `write {"bus": {…}}`})
			continue
		}
		for _, key := range sortedKeys(object) {
			if key != root {
				r.add(problem{
					Message: "data." + key + " is outside of the root `bus`", File: file.path,
					Row: rowOf(file, jsonText(key), false), Hint: "put it below bus/",
				})
			}
		}
		if twice := merge(c.data, object, "data"); twice != "" {
			r.add(problem{
				Message: twice + " is given by another data.json too", File: file.path,
				Row: rowOf(file, jsonText(twice[strings.LastIndex(twice, ".")+1:]), false), Hint: "keep it in one file",
			})
		}
	}
}

// merge adds what is new; the path of the first value that both have comes back.
func merge(into, from map[string]any, at string) string {
	for _, key := range sortedKeys(from) {
		have, twice := into[key]
		if !twice {
			into[key] = from[key]
			continue
		}
		haveObject, ok := have.(map[string]any)
		fromObject, okToo := from[key].(map[string]any)
		if !ok || !okToo {
			return at + "." + key
		}
		if conflict := merge(haveObject, fromObject, at+"."+key); conflict != "" {
			return conflict
		}
	}
	return ""
}

func parserOptions() ast.ParserOptions {
	return ast.ParserOptions{RegoVersion: ast.RegoV1, Capabilities: capabilities(), ProcessAnnotation: true}
}

func isTestFile(name string) bool { return strings.HasSuffix(name, "_test.rego") }

// parse reads every Rego file. Test files stay apart: they are hashed and run as tests, and never loaded for deciding.
func (c *constitution) parse(r *report) {
	for _, file := range c.src.files {
		if !strings.HasSuffix(file.path, ".rego") {
			continue
		}
		module, err := ast.ParseModuleWithOpts(file.path, string(file.data), parserOptions())
		if list := (ast.Errors)(nil); errors.As(err, &list) {
			r.parseErrors(list, &file)
			continue
		}
		if err != nil {
			r.opa(err, file.path)
			continue
		}
		if module == nil {
			r.add(problem{Message: "the file is empty", File: file.path, Row: 1, Hint: "write a package, or remove the file"})
			continue
		}
		checkImports(module, r)
		checkPackage(file.path, module, r)
		if isTestFile(file.path) {
			c.tests[file.path] = module
		} else {
			c.modules[file.path] = module
		}
	}
}

// checkImports refuses what OPA's parser lets pass by name although it is not among the capabilities.
func checkImports(module *ast.Module, r *report) {
	for _, imported := range module.Imports {
		ref, ok := imported.Path.Value.(ast.Ref)
		if !ok {
			continue
		}
		switch text := ref.String(); {
		case text == "rego.v2":
			r.at(imported.Location, "rego.v2 is not there", "write `import rego.v1`, or no import")
		case text == "future.keywords":
			r.at(imported.Location, "it imports every future keyword, and they change what a policy means",
				"leave the import out: contains, every, if and in need none")
		case text == "future.keywords.not", text == "future.keywords.and", text == "future.keywords.or":
			r.at(imported.Location, text+" is not there", "leave the import out; say what must be true, and admit on that")
		}
	}
}

func checkPackage(name string, module *ast.Module, r *report) {
	ref := module.Package.Path
	if len(ref) < 2 || !ref[1].Equal(ast.StringTerm(root)) {
		r.at(module.Package.Location, "the package is outside of the root `bus`", "begin it with `package bus`")
		return
	}
	last, ok := ref[len(ref)-1].Value.(ast.String)
	if isTestFile(name) && (!ok || !strings.HasSuffix(string(last), "_test")) {
		r.at(module.Package.Location,
			"a test file in a package that is not a test's: loaded by plain OPA, it could turn a no into a yes",
			"write `"+module.Package.String()+"_test`, and import what it tests")
	}
}

func newCompiler(schemas *ast.SchemaSet) *ast.Compiler {
	return ast.NewCompiler().
		WithCapabilities(capabilities()).
		WithStrict(true).
		WithSchemas(schemas).
		WithUseTypeCheckAnnotations(true).
		WithDefaultRegoVersion(ast.RegoV1).
		SetErrorLimit(compileErrorsMax)
}

func (c *constitution) compile(r *report) {
	object, err := ast.InterfaceToValue(c.data)
	if err != nil {
		r.add(problem{Message: "the data cannot be read: " + err.Error(), Hint: "see the message"})
		return
	}
	// Values are kept as OPA's own, so that a read during an evaluation converts nothing.
	c.store = inmem.NewFromASTObject(object.(ast.Object))
	c.base = newBaseData(c.store, object.(ast.Object))
	ctx := context.Background()
	if c.txn, err = c.store.NewTransaction(ctx); err != nil {
		r.add(problem{Message: err.Error(), Hint: "see the message"})
		return
	}
	c.compiler = newCompiler(c.schemas).WithPathConflictsCheck(storage.NonEmpty(ctx, c.store, c.txn))
	c.compiler.Compile(cloneModules(c.modules))
	if c.compiler.Failed() {
		r.opa(c.compiler.Errors, "")
		return
	}
	entry := c.compiler.GetRulesExact(decisionRef)
	switch {
	case len(entry) == 0:
		r.add(problem{
			Message: "there is no rule data.bus.decision", File: mainFile,
			Hint: `write in bus/main.rego: decision := {"allow": allow, "reasons": reasons}`,
		})
	case len(entry[0].Head.Args) > 0:
		r.at(entry[0].Location, "data.bus.decision is a function", "write decision := {…}")
	}
}

// cloneModules gives the compiler modules of its own: it rewrites what it gets.
func cloneModules(groups ...map[string]*ast.Module) map[string]*ast.Module {
	clones := map[string]*ast.Module{}
	for _, group := range groups {
		for name, module := range group {
			clones[name] = module.Copy()
		}
	}
	return clones
}

func (c *constitution) prepare(r *report) {
	query, err := c.prepared(ast.NewExpr(ast.NewTerm(decisionRef)))
	if err != nil {
		r.opa(err, mainFile)
		return
	}
	c.query = query
}

func (c *constitution) prepared(expr *ast.Expr) (rego.PreparedEvalQuery, error) {
	return rego.New(
		rego.ParsedQuery(ast.NewBody(expr)),
		rego.Compiler(c.compiler),
		rego.Store(c.base),
		rego.Transaction(c.txn),
		rego.Capabilities(capabilities()),
		rego.StrictBuiltinErrors(true),
	).PrepareForEval(context.Background())
}

func sortedKeys[V any](m map[string]V) []string {
	return slices.Sorted(maps.Keys(m))
}

// orEmpty makes JSON say [] and not null.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
