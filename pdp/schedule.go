package main

import (
	"sync"
	"time"
)

const (
	queuedMax          = 8192
	queuedMaxPerTenant = 4096
)

// schedule hands questions to a fixed number of evaluators: tenants in turn, each tenant's questions in order, and no
// tenant on all evaluators at once, so that a policy that is slow for one tenant never stops the others.
type schedule struct {
	evaluate     func(*ask)
	perTenantMax int

	mu        sync.Mutex
	wake      *sync.Cond
	tenants   map[string]*tenantQueue
	turn      []*tenantQueue // tenants with something waiting, the next one first
	queued    int
	running   int
	decisions uint64
}

type tenantQueue struct {
	name    string
	waiting []*ask
	running int
}

// newSchedule starts the evaluators; they run as long as the process does.
func newSchedule(slots int, evaluate func(*ask)) *schedule {
	s := &schedule{evaluate: evaluate, perTenantMax: slots - 1, tenants: map[string]*tenantQueue{}}
	s.wake = sync.NewCond(&s.mu)
	for range slots {
		go s.work()
	}
	return s
}

// add queues a question, or says that there is no room.
func (s *schedule) add(a *ask) *failure {
	a.arrived = time.Now()
	s.mu.Lock()
	queue := s.tenants[a.tenant]
	if queue == nil {
		queue = &tenantQueue{name: a.tenant}
		s.tenants[a.tenant] = queue
	}
	if s.queued >= queuedMax || len(queue.waiting) >= queuedMaxPerTenant {
		s.forgetIdle(queue)
		s.mu.Unlock()
		return &failure{Code: "unavailable", Message: "too many questions are waiting"}
	}
	queue.waiting = append(queue.waiting, a)
	s.queued++
	if len(queue.waiting) == 1 {
		s.turn = append(s.turn, queue)
	}
	s.mu.Unlock()
	s.wake.Signal()
	return nil
}

func (s *schedule) work() {
	for {
		a, queue := s.next()
		s.evaluate(a)
		s.done(queue)
	}
}

// next waits for a question that may run now.
func (s *schedule) next() (*ask, *tenantQueue) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		for i, queue := range s.turn {
			if queue.running >= s.perTenantMax {
				continue
			}
			a := queue.waiting[0]
			queue.waiting[0] = nil
			queue.waiting = queue.waiting[1:]
			s.turn = append(s.turn[:i], s.turn[i+1:]...)
			if len(queue.waiting) > 0 {
				s.turn = append(s.turn, queue)
			}
			queue.running++
			s.queued--
			s.running++
			return a, queue
		}
		s.wake.Wait()
	}
}

func (s *schedule) done(queue *tenantQueue) {
	s.mu.Lock()
	queue.running--
	s.running--
	s.decisions++
	s.forgetIdle(queue)
	s.mu.Unlock()
	s.wake.Signal()
}

// forgetIdle keeps the map as small as the set of tenants with something to do.
func (s *schedule) forgetIdle(queue *tenantQueue) {
	if queue.running == 0 && len(queue.waiting) == 0 {
		delete(s.tenants, queue.name)
	}
}

func (s *schedule) counts() (decisions uint64, running, queued int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.decisions, s.running, s.queued
}
