package main

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"

	"opa-agent-bus/pdp/internal/reduced"
)

func TestCapabilitiesFileIsWhatTheGeneratorMakes(t *testing.T) {
	made, err := reduced.JSON()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(made, capabilitiesJSON) {
		t.Error("capabilities.json is old: run `go generate ./...` in pdp/")
	}
}

func TestCapabilitiesLeaveOutWhatDoesNotBelong(t *testing.T) {
	caps := capabilities()
	if caps.AllowNet == nil || len(caps.AllowNet) > 0 || len(caps.FutureKeywords) > 0 {
		t.Errorf("allow_net %v, future keywords %v", caps.AllowNet, caps.FutureKeywords)
	}
	names := map[string]bool{}
	for _, builtin := range caps.Builtins {
		names[builtin.Name] = true
		if builtin.IsNondeterministic() && builtin.Name != "json.match_schema" && builtin.Name != "json.verify_schema" {
			t.Errorf("%s depends on more than its arguments", builtin.Name)
		}
	}
	for _, name := range []string{
		"http.send", "net.lookup_ip_addr", "opa.runtime", "rand.intn", "time.now_ns", "uuid.rfc4122", "io.jwt.decode_verify",
		"bits.lsh", "strings.render_template", "crypto.x509.parse_and_verify_certificates",
		"crypto.x509.parse_and_verify_certificates_with_options",
	} {
		if names[name] {
			t.Errorf("%s is there", name)
		}
	}
	for _, name := range []string{"json.match_schema", "regex.match", "glob.match", "net.cidr_contains", "time.parse_rfc3339_ns", "sprintf"} {
		if !names[name] {
			t.Errorf("%s is missing", name)
		}
	}
	if slices.Contains(caps.Features, "rego_v2") || slices.Contains(caps.Features, "rego_v2_import") {
		t.Errorf("features %v", caps.Features)
	}
}

// bare is a document without what only describes arguments: OPA drops that when it reads a file.
func bare(t *testing.T, value any) any {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	var document any
	if err := json.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	return withoutWords(document)
}

func withoutWords(value any) any {
	switch value := value.(type) {
	case []any:
		for i := range value {
			value[i] = withoutWords(value[i])
		}
	case map[string]any:
		for key, inner := range value {
			value[key] = withoutWords(inner)
		}
		if _, typed := value["type"]; typed {
			delete(value, "name")
			delete(value, "description")
		}
	}
	return value
}

func TestCapabilitiesAreWhatOPAReadsInTheFile(t *testing.T) {
	read, err := ast.LoadCapabilitiesJSON(bytes.NewReader(capabilitiesJSON))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(bare(t, capabilities()), bare(t, read)) {
		t.Error("a built-in is declared otherwise than in capabilities.json")
	}
	if capabilities().AllowNet == nil || len(capabilities().AllowNet) > 0 || len(read.AllowNet) > 0 {
		t.Error("the network is allowed")
	}
}
