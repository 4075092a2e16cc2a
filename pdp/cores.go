package main

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// An evaluation of more expressions than this is a long one: some milliseconds.
	expressionsMany = 4096
	// For so long after a long evaluation the next one is expected.
	wideFor = time.Second
)

// theCores is this process's part of the machine.
var theCores cores

// cores sets how many threads run Go at once. Several workers share the cores of the machine; with as many threads as
// cores in each of them, waking threads and looking for work took a third of a decision's time. But a thread that has
// the only place would be taken from a long evaluation only every 10 ms, and nothing be read from the socket meanwhile.
// So while there is something long to do, a process has all cores, as if it were alone.
type cores struct {
	wide atomic.Bool // all cores

	mu   sync.Mutex
	part int // of all cores; 0: not told to share
	all  int
	held int       // long things that are being done
	till time.Time // when there may be fewer again
}

// share is told how many workers there are.
func (c *cores) share(workers int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if workers < 2 || c.part > 0 {
		return
	}
	c.all = runtime.GOMAXPROCS(0)
	c.part = max(1, c.all/workers)
	runtime.GOMAXPROCS(c.part)
}

// hold takes all cores until release, for what is known to be long.
func (c *cores) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held++
	c.widen()
}

func (c *cores) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held--
	c.widen()
}

// long takes all cores for a while.
func (c *cores) long() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.widen()
}

func (c *cores) widen() {
	c.till = time.Now().Add(wideFor)
	if c.part > 0 && !c.wide.Load() {
		c.wide.Store(true)
		runtime.GOMAXPROCS(c.all)
	}
}

// settle goes back to this worker's part once nothing has been long for a while.
func (c *cores) settle(now time.Time) {
	if !c.wide.Load() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.wide.Load() && c.held == 0 && now.After(c.till) {
		c.wide.Store(false)
		runtime.GOMAXPROCS(c.part)
	}
}
