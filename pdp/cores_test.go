package main

import (
	"runtime"
	"testing"
	"time"
)

func TestAWorkerHasItsPartOfTheCoresAndAllOfThemForWhatIsLong(t *testing.T) {
	before := runtime.GOMAXPROCS(4)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	var c cores
	want := func(cores int, why string) {
		t.Helper()
		if got := runtime.GOMAXPROCS(0); got != cores {
			t.Errorf("%s: %d cores", why, got)
		}
	}
	long := func() time.Time { return time.Now().Add(2 * wideFor) }

	c.long()
	c.settle(long())
	want(4, "alone")
	c.share(1)
	want(4, "the only worker")
	c.share(2)
	want(2, "one of two")
	c.share(4)
	want(2, "told again")
	c.long()
	want(4, "a long evaluation")
	c.settle(time.Now())
	want(4, "soon after it")
	c.hold()
	c.settle(long())
	want(4, "while something long is done")
	c.release()
	c.settle(time.Now())
	want(4, "soon after that")
	c.settle(long())
	want(2, "long after it")
}

func TestAnEvaluationOfManyExpressionsTakesAllCores(t *testing.T) {
	before, mine := runtime.GOMAXPROCS(2), &theCores
	t.Cleanup(func() {
		runtime.GOMAXPROCS(before)
		mine.part = 0
		mine.wide.Store(false)
	})
	mine.share(2)
	var all deadlines
	d := all.start(time.Hour)
	for range expressionsMany - 1 {
		d.Cancelled()
	}
	if runtime.GOMAXPROCS(0) != 1 {
		t.Error("it has all cores too early")
	}
	if d.Cancelled(); runtime.GOMAXPROCS(0) != 2 {
		t.Error("it never has all cores")
	}
}
