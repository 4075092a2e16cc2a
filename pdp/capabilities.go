package main

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
)

//go:generate go run ./gencaps capabilities.json

// capabilitiesJSON is what a policy may use (contract §4, "Not there"); gencaps writes it from OPA's own list.
//
//go:embed capabilities.json
var capabilitiesJSON []byte

var capabilities = sync.OnceValue(func() *ast.Capabilities {
	caps, err := ast.LoadCapabilitiesJSON(bytes.NewReader(capabilitiesJSON))
	if err != nil {
		panic("the embedded capabilities.json cannot be read: " + err.Error())
	}
	if caps.AllowNet == nil { // an empty list that was lost on the way would mean: any host
		panic("the embedded capabilities.json allows the network")
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
