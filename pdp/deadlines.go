package main

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// deadlines cancels evaluations that run for too long. One timer serves all that run, and it is set only for an earlier
// time than it waits for already: a timer set for each question would wake the runtime's poller for each.
type deadlines struct {
	mu      sync.Mutex
	running []*deadline
	timer   *time.Timer
	rings   time.Time // when the timer does; zero: it is not set
}

// deadline is OPA's topdown.Cancel for one evaluation.
type deadline struct {
	at     time.Time
	passed atomic.Bool
	asked  int
}

func (d *deadline) Cancel() { d.passed.Store(true) }

// Cancelled is what the evaluation asks before each expression.
func (d *deadline) Cancelled() bool {
	if d.asked++; d.asked == expressionsMany {
		theCores.long()
	}
	return d.passed.Load()
}

// start watches an evaluation that has so much time left, until end.
func (s *deadlines) start(left time.Duration) *deadline {
	d := &deadline{at: time.Now().Add(left)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = append(s.running, d)
	if s.rings.IsZero() || d.at.Before(s.rings) {
		s.set(d.at, left)
	}
	return d
}

func (s *deadlines) end(d *deadline) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := len(s.running) - 1
	s.running[slices.Index(s.running, d)] = s.running[last]
	s.running[last] = nil
	s.running = s.running[:last]
}

func (s *deadlines) set(at time.Time, left time.Duration) {
	s.rings = at
	if s.timer == nil {
		s.timer = time.AfterFunc(left, s.ring)
	} else {
		s.timer.Reset(left)
	}
}

// ring cancels what is past its deadline and sets the timer for what is next, if anything still runs.
func (s *deadlines) ring() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.rings = time.Time{}
	for _, d := range s.running {
		switch {
		case d.passed.Load():
		case !d.at.After(now):
			d.Cancel()
		case s.rings.IsZero() || d.at.Before(s.rings):
			s.rings = d.at
		}
	}
	if !s.rings.IsZero() {
		s.set(s.rings, s.rings.Sub(now))
	}
}
