package main

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
)

//go:generate go run ./gencaps capabilities.json

// capabilitiesJSON is what a policy may use (contract §4, "Not there"); gencaps writes it from OPA's own list.
//
//go:embed capabilities.json
var capabilitiesJSON []byte

// capabilities has what the embedded file names, each built-in as OPA itself declares it: reading its types out of the
// file took a third of a worker's start. A test compares with OPA's own reading of the file.
var capabilities = sync.OnceValue(func() *ast.Capabilities {
	var named struct {
		Builtins       []struct{ Name string }
		AllowNet       []string `json:"allow_net"`
		FutureKeywords []string `json:"future_keywords"`
		Features       []string
	}
	if err := json.Unmarshal(capabilitiesJSON, &named); err != nil {
		panic("the embedded capabilities.json cannot be read: " + err.Error())
	}
	if named.AllowNet == nil { // an empty list that was lost on the way would mean: any host
		panic("the embedded capabilities.json allows the network")
	}
	caps := &ast.Capabilities{
		Builtins:       make([]*ast.Builtin, 0, len(named.Builtins)),
		AllowNet:       named.AllowNet,
		FutureKeywords: named.FutureKeywords,
		Features:       named.Features,
	}
	for _, one := range named.Builtins {
		declared, ok := ast.BuiltinMap[one.Name]
		if !ok {
			panic("the embedded capabilities.json names " + one.Name + ", which this OPA does not have")
		}
		caps.Builtins = append(caps.Builtins, declared)
	}
	return caps
})

var builtinsByName = sync.OnceValue(func() map[string]*ast.Builtin {
	known := map[string]*ast.Builtin{}
	for _, builtin := range capabilities().Builtins {
		known[builtin.Name] = builtin
	}
	return known
})

func capabilitiesDigest() string {
	sum := sha256.Sum256(capabilitiesJSON)
	return hex.EncodeToString(sum[:])
}
