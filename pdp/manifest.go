package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// manifest is what .manifest says.
type manifest struct {
	Revision string
	Name     string
	NotAfter *string // RFC 3339 UTC
}

var revisionPattern = regexp.MustCompile(`^(0|[1-9][0-9]{0,18})$`)

var keyIn = regexp.MustCompile(`^(?:the key ")?(?:metadata\.eab\.|metadata\.)?([a-z_A-Z0-9-]+)`)

// rowOf is the line on which something stands in a file, for the first or the last time; 1 where it does not.
func rowOf(file *sourceFile, text string, last bool) int {
	at := bytes.Index(file.data, []byte(text))
	if last {
		at = bytes.LastIndex(file.data, []byte(text))
	}
	if at < 0 {
		return 1
	}
	return 1 + bytes.Count(file.data[:at], []byte("\n"))
}

// readManifest takes exactly the keys that are known: OPA's reader matches keys whatever their case, and knows some
// (file_rego_versions, wasm) that would load more than the hash's reader thinks.
func readManifest(src *source, r *report) manifest {
	var m manifest
	file := src.file(manifestFile)
	if file == nil {
		r.add(problem{
			Message: "there is no .manifest", File: manifestFile,
			Hint: `write {"revision": "1", "roots": ["bus"], "rego_version": 1, "metadata": {"eab": {"name": "…", "not_after": null}}}`,
		})
		return m
	}
	value, ok := r.json(file)
	if !ok {
		return m
	}
	// The message begins with, or has in quotes, the key that it is about.
	note := func(message, hint string) {
		row := 1
		if found := keyIn.FindStringSubmatch(message); found != nil {
			row = rowOf(file, jsonText(found[1]), false)
		}
		r.add(problem{Message: message, File: manifestFile, Row: row, Hint: hint})
	}
	document, ok := value.(map[string]any)
	if !ok {
		note("it is not an object", `write {"revision": "1", …}`)
		return m
	}
	onlyKeys(document, note, "", "revision", "roots", "rego_version", "metadata")
	revision, _ := document["revision"].(string)
	if _, err := strconv.ParseInt(revision, 10, 64); err != nil || !revisionPattern.MatchString(revision) {
		note(fmt.Sprintf("revision is %s", jsonText(document["revision"])), `write a decimal from "0" to "9223372036854775807", as a string`)
	} else {
		m.Revision = revision
	}
	if roots, ok := document["roots"].([]any); !ok || len(roots) != 1 || roots[0] != root {
		note("roots is "+jsonText(document["roots"]), `write "roots": ["bus"]`)
	}
	if document["rego_version"] != json.Number("1") {
		note("rego_version is "+jsonText(document["rego_version"]), `write "rego_version": 1`)
	}
	m.readMetadata(document["metadata"], note)
	return m
}

func (m *manifest) readMetadata(value any, note func(message, hint string)) {
	const shape = `write "metadata": {"eab": {"name": "…", "not_after": null}}`
	if value == nil {
		return
	}
	metadata, ok := value.(map[string]any)
	if !ok {
		note("metadata is not an object", shape)
		return
	}
	if metadata["eab"] == nil {
		return
	}
	eab, ok := metadata["eab"].(map[string]any)
	if !ok {
		note("metadata.eab is not an object", shape)
		return
	}
	onlyKeys(eab, note, "metadata.eab.", "name", "not_after")
	if name, given := eab["name"]; given && name != nil {
		if m.Name, ok = name.(string); !ok {
			note("metadata.eab.name is not a string", shape)
		}
	}
	if end := eab["not_after"]; end != nil {
		text, ok := end.(string)
		if _, err := time.Parse(time.RFC3339, text); !ok || err != nil || !strings.HasSuffix(text, "Z") {
			note("metadata.eab.not_after is "+jsonText(end), `write a time in UTC, "2027-12-31T00:00:00Z", or null`)
			return
		}
		m.NotAfter = &text
	}
}

func onlyKeys(document map[string]any, note func(message, hint string), prefix string, known ...string) {
	for _, key := range sortedKeys(document) {
		if !slices.Contains(known, key) {
			note(fmt.Sprintf("the key %q is not known", prefix+key), "use "+strings.Join(known, ", "))
		}
	}
}

func jsonText(value any) string {
	if value == nil {
		return "missing"
	}
	text, err := json.Marshal(value)
	if err != nil {
		return fmt.Sprint(value)
	}
	return string(text[:min(len(text), 100)])
}
