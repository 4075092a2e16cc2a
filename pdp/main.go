// Command eab-pdp is the policy decision point: OPA as a library behind a small frame protocol.
//
// The bus starts it with a connected socket as standard input and nothing else. It answers frames (frames.go) until
// that socket closes, then exits. It keeps nothing on disk, reads no environment of its own and opens no other socket.
// It is not a server and not an OPA command line: `opa` itself serves those needs.
package main

import (
	"fmt"
	"net"
	"os"
	"runtime/debug"
)

// stackBytesMax ends a runaway recursion inside OPA's own code before it takes the machine's memory.
const stackBytesMax = 128 << 20

func main() {
	debug.SetMaxStack(stackBytesMax)
	conn, err := net.FileConn(os.Stdin)
	if err != nil {
		fmt.Fprintln(os.Stderr, "eab-pdp is started by the bus, with a socket as its standard input; see `eab doctor`")
		os.Exit(2)
	}
	go watchMemory(debug.SetMemoryLimit(-1))
	if err := newServer(conn).serve(); err != nil {
		fmt.Fprintln(os.Stderr, "eab-pdp:", err)
		os.Exit(1)
	}
}
