// Package reduced says which of OPA's capabilities a constitution has. The worker does not import it: it reads the
// committed file, which a test compares with this.
package reduced

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// Nondeterministic by OPA's own mark for what they might fetch; with an empty allow_net they fetch nothing.
var kept = []string{"json.match_schema", "json.verify_schema"}

// Reads the clock, or cannot be stopped and eats memory.
var removed = []string{"bits.lsh", "strings.render_template"}

const removedPrefix = "crypto.x509.parse_and_verify_certificates"

// future keywords and the second version of Rego change what a policy means; a later OPA may add more: list, not trim.
var features = []string{ast.FeatureRegoV1, ast.FeatureKeywordsInRefs, ast.FeatureTemplateStrings}

// Capabilities is OPA's list of this version, reduced.
func Capabilities() *ast.Capabilities {
	caps := ast.CapabilitiesForThisVersion()
	caps.Builtins = slices.DeleteFunc(slices.Clone(caps.Builtins), func(builtin *ast.Builtin) bool {
		return builtin.IsNondeterministic() && !slices.Contains(kept, builtin.Name) ||
			slices.Contains(removed, builtin.Name) || strings.HasPrefix(builtin.Name, removedPrefix)
	})
	caps.FutureKeywords = []string{}
	caps.Features = features
	caps.WasmABIVersions = nil
	return caps
}

// JSON is the text of capabilities.json.
func JSON() ([]byte, error) {
	plain, err := json.Marshal(Capabilities())
	if err != nil {
		return nil, err
	}
	var document map[string]any
	if err := json.Unmarshal(plain, &document); err != nil {
		return nil, err
	}
	document["allow_net"] = []string{} // omitted when empty by OPA's own encoder, and absent means any host
	text, err := json.MarshalIndent(document, "", " ")
	return append(text, '\n'), err
}
