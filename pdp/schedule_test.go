package main

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

// held is an evaluator that keeps each question until it is released.
type held struct {
	mu      sync.Mutex
	started chan string
	release map[uint64]chan struct{}
}

func newHeld() *held {
	return &held{started: make(chan string, 10_000), release: map[uint64]chan struct{}{}}
}

func (h *held) gate(id uint64) chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.release[id] == nil {
		h.release[id] = make(chan struct{})
	}
	return h.release[id]
}

func (h *held) evaluate(a *ask) {
	h.started <- fmt.Sprintf("%s/%d", a.tenant, a.id)
	<-h.gate(a.id)
}

func (h *held) next(t *testing.T) string {
	t.Helper()
	select {
	case name := <-h.started:
		return name
	case <-time.After(5 * time.Second):
		t.Fatal("nothing was started")
		return ""
	}
}

func TestOneTenantNeverHoldsEveryEvaluator(t *testing.T) {
	h := newHeld()
	s := newSchedule(3, h.evaluate)
	for id := range uint64(5) {
		s.add(&ask{id: id, tenant: "slow"})
	}
	first := map[string]bool{h.next(t): true, h.next(t): true}
	if !first["slow/0"] || !first["slow/1"] {
		t.Fatalf("its own order: %v", first)
	}
	s.add(&ask{id: 10, tenant: "other"})
	if got := h.next(t); got != "other/10" {
		t.Fatalf("the third evaluator took %s", got)
	}
	if _, running, queued := s.counts(); running != 3 || queued != 3 {
		t.Fatalf("%d running, %d queued", running, queued)
	}
	close(h.gate(10))
	s.add(&ask{id: 11, tenant: "other"})
	if got := h.next(t); got != "other/11" {
		t.Fatalf("the free evaluator took %s", got)
	}
	close(h.gate(0))
	if got := h.next(t); got != "slow/2" {
		t.Fatalf("after its own had ended came %s", got)
	}
}

func TestTenantsTakeTurns(t *testing.T) {
	h := newHeld()
	s := newSchedule(2, h.evaluate)
	s.add(&ask{id: 0, tenant: "x"})
	s.add(&ask{id: 1, tenant: "y"})
	h.next(t)
	h.next(t)
	for id := uint64(2); id < 8; id++ {
		s.add(&ask{id: id, tenant: "a"})
	}
	s.add(&ask{id: 8, tenant: "b"})
	close(h.gate(0))
	if got := h.next(t); got != "a/2" {
		t.Fatalf("first %s", got)
	}
	close(h.gate(1))
	if got := h.next(t); got != "b/8" {
		t.Fatalf("then %s: six questions of one tenant stood before one of another", got)
	}
}

func TestQueuesAreBounded(t *testing.T) {
	h := newHeld()
	s := newSchedule(2, h.evaluate)
	s.add(&ask{id: 0, tenant: "a"})
	h.next(t)
	for id := range uint64(queuedMaxPerTenant) {
		if fail := s.add(&ask{id: id + 1, tenant: "a"}); fail != nil {
			t.Fatalf("question %d: %v", id, fail)
		}
	}
	if fail := s.add(&ask{id: 1 << 20, tenant: "a"}); fail == nil || fail.Code != "unavailable" {
		t.Fatalf("one too many: %v", fail)
	}
	if fail := s.add(&ask{id: 1 << 21, tenant: "b"}); fail != nil {
		t.Fatalf("another tenant: %v", fail)
	}
}

func TestWhatHasNothingToDoIsForgotten(t *testing.T) {
	var all sync.WaitGroup
	s := newSchedule(4, func(*ask) { all.Done() })
	for id := range uint64(1000) {
		all.Add(1)
		s.add(&ask{id: id, tenant: fmt.Sprint(id)})
	}
	all.Wait()
	deadline := time.Now().Add(5 * time.Second)
	for {
		s.mu.Lock()
		left := len(s.tenants)
		s.mu.Unlock()
		if left == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d tenants are remembered", left)
		}
		time.Sleep(time.Millisecond)
	}
}
