package main

import (
	_ "embed"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/util"
)

// inputSchemaJSON is the shape of contract §4's input: payload, headers and facts are open, the rest is closed.
//
//go:embed schema/input.json
var inputSchemaJSON []byte

const inputSchemaFile = schemaFolder + "input.json"

// readSchemas makes the types that the policy is checked against: the input's own, narrowed by bus/schema/input.json,
// and every other bus/schema/<name>.json as schema.<name>.
func (c *constitution) readSchemas(r *report) {
	c.schemas = ast.NewSchemaSet()
	var input any
	if err := util.UnmarshalJSON(inputSchemaJSON, &input); err != nil {
		panic("the embedded schema cannot be read: " + err.Error())
	}
	for i := range c.src.files {
		file := &c.src.files[i]
		if path.Dir(file.path)+"/" != schemaFolder || !strings.HasSuffix(file.path, ".json") {
			continue
		}
		schema, ok := r.json(file)
		if !ok || !checkSchemaRefs(schema, file.path, r) {
			continue
		}
		if file.path == inputSchemaFile {
			input = narrowInput(input, schema, r)
		}
		name := strings.TrimSuffix(path.Base(file.path), ".json")
		c.schemas.Put(ast.Ref{ast.SchemaRootDocument, ast.StringTerm(name)}, schema)
	}
	c.schemas.Put(ast.SchemaRootRef, input)
}

// checkSchemaRefs refuses a $ref that leads out of the file: nothing is fetched, from the network or the disk.
func checkSchemaRefs(schema any, file string, r *report) bool {
	foreign := foreignRef(schema)
	if foreign != "" {
		r.add(problem{
			Message: fmt.Sprintf("the schema refers to %q, and nothing is fetched", foreign), File: file, Row: 1,
			Hint: "copy the part into this file's definitions and refer to it with \"#/definitions/…\"",
		})
	}
	return foreign == ""
}

// foreignRef is the first $ref, or base for refs, that leads out of the document; "" when there is none.
func foreignRef(schema any) string {
	switch at := schema.(type) {
	case map[string]any:
		for _, key := range sortedKeys(at) {
			text, isText := at[key].(string)
			if isText && key == "$ref" && !strings.HasPrefix(text, "#") {
				return text
			}
			if isText && (key == "$id" || key == "id") && strings.HasPrefix(text, "file:") {
				return text
			}
			if found := foreignRef(at[key]); found != "" {
				return found
			}
		}
	case []any:
		for _, element := range at {
			if found := foreignRef(element); found != "" {
				return found
			}
		}
	}
	return ""
}

// narrowInput puts an author's schema over the input's own. A field that the bus never sends is a problem: a policy
// typed by it would wait for ever.
func narrowInput(ours, theirs any, r *report) any {
	merged := narrow(ours, theirs, "input", r)
	object, ok := merged.(map[string]any)
	source, okToo := theirs.(map[string]any)
	if ok && okToo {
		for _, key := range []string{"definitions", "$defs"} { // what a "#/definitions/…" in a part of it means
			if definitions, given := source[key]; given {
				object[key] = definitions
			}
		}
	}
	return merged
}

func narrow(ours, theirs any, at string, r *report) any {
	note := func(message string) {
		r.add(problem{Message: message, File: inputSchemaFile, Row: 1, Hint: "keep to the input of the documentation, or leave it out"})
	}
	own, _ := ours.(map[string]any)
	other, ok := theirs.(map[string]any)
	if !ok {
		note(at + ": a schema is an object")
		return ours
	}
	ownType, otherType := own["type"], other["type"]
	if ownType != nil && otherType != nil && otherType != ownType && !(ownType == "number" && otherType == "integer") {
		note(fmt.Sprintf("%s is %s, not %s", at, jsonText(ownType), jsonText(otherType)))
		return ours
	}
	ownProperties, closed := own["properties"].(map[string]any)
	if !closed {
		if otherType == nil && len(other) == 0 {
			return ours
		}
		return theirs
	}
	properties := map[string]any{}
	for name, schema := range ownProperties {
		properties[name] = schema
	}
	otherProperties, _ := other["properties"].(map[string]any)
	for _, name := range sortedKeys(otherProperties) {
		if ownProperties[name] == nil {
			note(fmt.Sprintf("%s has no field %q; it has %s", at, name, strings.Join(slices.Collect(slices.Values(sortedKeys(ownProperties))), ", ")))
			continue
		}
		properties[name] = narrow(ownProperties[name], otherProperties[name], at+"."+name, r)
	}
	merged := map[string]any{}
	for key, value := range own {
		merged[key] = value
	}
	merged["properties"] = properties
	return merged
}
