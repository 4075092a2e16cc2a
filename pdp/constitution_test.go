package main

import (
	"maps"
	"os"
	"path/filepath"
	"testing"
)

// small is a constitution with one rule that admits every message with an id.
var small = map[string]string{
	".manifest":              `{"revision": "1", "roots": ["bus"], "rego_version": 1}`,
	"bus/manifest/data.json": `{"rules": ["one"]}`,
	"bus/main.rego": "package bus\n\ndefault allow := false\n\nallow if {\n\tcount(data.bus.manifest.rules) > 0\n" +
		"\tevery name in data.bus.manifest.rules {\n\t\tdata.bus.rules[name].admit == true\n\t}\n}\n\n" +
		"decision := {\"allow\": allow}\n",
	"bus/rules/one/one.rego": "package bus.rules.one\n\ndefault admit := false\n\nadmit if input.message.id\n",
}

// constitutionAt writes the small constitution with these files over it; an empty text leaves a file out.
func constitutionAt(t testing.TB, changes map[string]string) string {
	t.Helper()
	folder := t.TempDir()
	files := maps.Clone(small)
	maps.Copy(files, changes)
	for name, text := range files {
		if text == "" {
			continue
		}
		path := filepath.Join(folder, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

// compiled makes it ready, or ends the test.
func compiled(t testing.TB, changes map[string]string) *constitution {
	t.Helper()
	src, problems, err := readSource(constitutionAt(t, changes))
	if err != nil || len(problems) > 0 {
		t.Fatal(err, problems)
	}
	c, problems := compileConstitution(src)
	if len(problems) > 0 {
		t.Fatalf("%+v", problems)
	}
	return c
}
