package main

import (
	"fmt"
	"math"
	"os"
	"runtime/metrics"
	"time"
)

const (
	memoryWatchEvery = 50 * time.Millisecond
	// Above the collector's own (soft) limit by this much, it is no longer garbage that fills the memory.
	memorySlack = 1.25
)

// watchMemory ends the process when what lives in it outgrows the limit by a quarter: GOMEMLIMIT alone only makes the
// collector work harder. The bus replaces the process and asks the other questions again.
func watchMemory(limit int64) {
	if limit <= 0 || limit == math.MaxInt64 {
		return
	}
	for range time.Tick(memoryWatchEvery) {
		if used := memoryBytes(); float64(used) > float64(limit)*memorySlack {
			fmt.Fprintf(os.Stderr, "eab-pdp: out of memory: %d MiB in use, %d MiB allowed\n", used>>20, limit>>20)
			os.Exit(3)
		}
	}
}

// memoryBytes is what the Go runtime holds of the machine's memory.
func memoryBytes() uint64 {
	samples := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(samples)
	return samples[0].Value.Uint64() - samples[1].Value.Uint64()
}
