// Command gencaps writes capabilities.json: OPA's own list without what would make a decision depend on anything but
// the message and the constitution, and without what cannot be stopped (contract §4).
package main

import (
	"fmt"
	"os"

	"opa-agent-bus/pdp/internal/reduced"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: gencaps FILE")
		os.Exit(2)
	}
	text, err := reduced.JSON()
	if err == nil {
		err = os.WriteFile(os.Args[1], text, 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gencaps:", err)
		os.Exit(1)
	}
}
