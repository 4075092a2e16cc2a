package main

import (
	"bytes"
	"slices"
	"testing"

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
