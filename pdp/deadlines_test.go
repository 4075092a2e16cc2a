package main

import (
	"testing"
	"time"
)

func passes(d *deadline, within time.Duration) bool {
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if d.passed.Load() {
			return true
		}
	}
	return d.passed.Load()
}

func TestEachEvaluationHasItsOwnDeadline(t *testing.T) {
	var s deadlines
	late := s.start(time.Hour)
	soon := s.start(30 * time.Millisecond)
	sooner := s.start(5 * time.Millisecond)
	if !passes(sooner, 10*time.Second) || !passes(soon, 10*time.Second) {
		t.Error("an evaluation runs past its deadline")
	}
	if late.passed.Load() {
		t.Error("it is cancelled long before its deadline")
	}
	for _, d := range []*deadline{sooner, late, soon} {
		s.end(d)
	}
	if len(s.running) != 0 {
		t.Errorf("%d are still watched", len(s.running))
	}
}

func TestADeadlineCountsWhateverTheTimerWaitedForBefore(t *testing.T) {
	var s deadlines
	s.end(s.start(20 * time.Millisecond)) // the timer is set, and nothing runs any more
	next := s.start(60 * time.Millisecond)
	if !passes(next, 10*time.Second) {
		t.Error("the second evaluation runs past its deadline")
	}
	s.end(next)
	time.Sleep(5 * time.Millisecond)
	last := s.start(5 * time.Millisecond)
	if !passes(last, 10*time.Second) {
		t.Error("an evaluation that began after the timer had rung runs past its deadline")
	}
}

func TestAnEvaluationEndsAtItsDeadline(t *testing.T) {
	c := compiled(t, map[string]string{
		"bus/rules/one/one.rego": "package bus.rules.one\n\ndefault admit := false\n\n" +
			"admit if count([1 | some x in numbers.range(1, 10000); some y in numbers.range(1, 10000); x == y + 20000]) > 0\n",
	})
	started := time.Now()
	_, fail := c.evaluate([]byte(`{"message": {"id": "m"}}`), 50*time.Millisecond)
	if fail == nil || fail.Code != "policy_timeout" || time.Since(started) > 10*time.Second {
		t.Errorf("%v after %v", fail, time.Since(started))
	}
}
