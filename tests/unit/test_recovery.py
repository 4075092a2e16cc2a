"""The breaker, the retry budget and the queue of recoveries, as tables and as laws."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enhanced_agent_bus.recovery.breaker import BURST_SECONDS, Breaker
from enhanced_agent_bus.recovery.budget import SAVED_SECONDS, Budget
from enhanced_agent_bus.recovery.orchestrator import ENDED_KEPT, Failure, Recoveries
from enhanced_agent_bus.recovery.retry import GiveUp, Park, Retry, RetryAfter, next_step


def test_linear_immediate_and_manual() -> None:
    """Linear waits base, 2 base … cap without chance; immediate not at all; manual for somebody."""
    linear = Retry.linear(attempts=5, base_seconds=1, cap_seconds=3)
    assert [next_step(linear, n, 0.9) for n in range(1, 6)] == [
        *(RetryAfter(float(seconds)) for seconds in (1, 2, 3, 3)),
        GiveUp("attempts_exhausted"),
    ]
    assert [next_step(Retry.immediate(3), n, 0.9) for n in (1, 2)] == [RetryAfter(0.0)] * 2
    assert next_step(Retry.immediate(3), 3, 0.9) == GiveUp("attempts_exhausted")
    assert next_step(Retry.manual(), 7, 0.9) == Park()
    assert next_step(Retry.manual(), 1, 0.9, never="handler_failed") == GiveUp("handler_failed")


def test_errors_that_are_never_retried() -> None:
    """By class, with those below it, and by name, for errors of libraries that are not always there."""
    retry = Retry.exponential(never=[LookupError, "PermissionError"])
    for error, gives_up in [(KeyError("k"), True), (PermissionError(), True), (OSError(), False), (None, False)]:
        assert retry.gives_up_on(error) is gives_up
    assert not Retry.exponential().gives_up_on(KeyError())


def test_a_breaker_goes_from_closed_to_open_to_half_open() -> None:
    """Open after so many in a row; half open after the pause, for one; closed by it, or open for another pause."""
    breaker = Breaker(2, 10.0)
    assert breaker.state(0.0) == "closed"
    assert not breaker.failed(0.0, 1, gave_up=True)
    assert breaker.failed(0.0, 1, gave_up=True)
    assert (breaker.state(9.9), breaker.may_start(9.9), breaker.seconds_left(4.0)) == ("open", False, 6.0)
    assert breaker.state(10.0) == "half_open"
    assert [breaker.may_start(10.0) for _ in range(3)] == [True, False, False]
    assert breaker.failed(11.0, 1, gave_up=True)
    assert (breaker.state(20.9), breaker.state(21.0)) == ("open", "half_open")
    assert breaker.may_start(21.0)
    breaker.worked()
    assert breaker.state(21.0) == "closed"
    assert all(breaker.may_start(21.0) for _ in range(3))


def test_a_run_that_did_not_come_about_leaves_the_turn_to_another() -> None:
    """What was to be tried had expired, say: the breaker stays half open, and the next is tried."""
    breaker = Breaker(1, 10.0)
    breaker.failed(0.0, 1, gave_up=True)
    assert breaker.may_start(10.0)
    breaker.left()
    assert breaker.may_start(10.0)


def test_a_late_failure_does_not_lengthen_the_pause() -> None:
    """A run that began before the breaker opened says nothing new."""
    breaker = Breaker(1, 10.0)
    assert breaker.failed(0.0, 1, gave_up=True)
    assert not breaker.failed(9.0, 1, gave_up=True)
    assert breaker.may_start(10.0)


def test_somebody_who_wants_to_know_ends_the_pause() -> None:
    """A replay is tried at once."""
    breaker = Breaker(1, 10.0)
    breaker.failed(0.0, 1, gave_up=True)
    breaker.try_now()
    assert breaker.may_start(0.1)


def test_one_message_that_cannot_be_handled_does_not_open_it() -> None:
    """Five runs and given up: that is one message, not a recipient that is out of order."""
    breaker = Breaker(5, 10.0)
    for attempt in range(1, 6):
        assert not breaker.failed(float(attempt), attempt, gave_up=attempt == 5)
    assert breaker.state(6.0) == "closed"


def test_runs_and_messages_are_not_added_up() -> None:
    """Four messages that are given up after three quick runs each are four, whatever the fifth has failed so far."""
    breaker = Breaker(5, 10.0)
    for message in range(4):
        assert not any(breaker.failed(0.01 * message, attempt, gave_up=attempt == 3) for attempt in (1, 2, 3))
    assert [breaker.failed(0.1, attempt, gave_up=attempt == 3) for attempt in (1, 2, 3)] == [False, False, True]


def test_one_message_that_is_still_retried_opens_it() -> None:
    """Where it has more attempts than the breaker has patience."""
    breaker = Breaker(3, 10.0)
    assert [breaker.failed(0.0, attempt, gave_up=False) for attempt in (1, 2, 3)] == [False, False, True]


def test_a_burst_that_fails_together_does_not_open_it_and_an_outage_does() -> None:
    """Twenty first runs at once are what retries are for; as many over a while are not."""
    burst = Breaker(5, 10.0)
    assert not any(burst.failed(0.001 * n, 1, gave_up=False) for n in range(20))
    outage = Breaker(5, 10.0)
    opened = [outage.failed(BURST_SECONDS / 4 * n, 1, gave_up=False) for n in range(6)]
    assert opened == [False, False, False, False, True, False]


@given(st.lists(st.tuples(st.floats(0, 5), st.sampled_from(["may", "failed", "worked", "left", "try"])), max_size=60))
def test_a_breaker_that_is_shut_lets_one_through_at_a_time(steps: list[tuple[float, str]]) -> None:
    """Whatever happens: never two at once while it is shut, and never for ever nobody."""
    breaker, now, out = Breaker(3, 1.0), 0.0, False
    for seconds, step in steps:
        now += seconds
        if step == "may" and breaker.shut:
            assert not (breaker.may_start(now) and out)
            out = breaker.state(now) == "half_open" and not breaker.may_start(now)
        elif step == "failed":
            breaker.failed(now, 1, gave_up=True)
            out = False
        elif step == "worked":
            breaker.worked()
            out = False
        elif step == "left":
            breaker.left()
            out = False
        else:
            breaker.try_now()
    breaker.left()
    assert breaker.may_start(now + 1.0)


def test_the_budget_gives_what_was_paid_in_and_some_each_second() -> None:
    """No more than is saved up in ten seconds, and then as it comes."""
    budget = Budget(0.5, 2.0, now=0.0)
    assert sum(budget.take(0.0) for _ in range(100)) == 2 * SAVED_SECONDS
    assert budget.seconds_left() == pytest.approx(0.5)
    assert not budget.take(0.4)
    assert budget.take(0.5)
    for _ in range(2):
        budget.pay_in()
    assert budget.take(0.5)
    assert not budget.take(0.5)


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=200), st.floats(0, 5), st.floats(0.1, 50))
def test_the_budget_is_never_overdrawn(steps: list[tuple[float, bool]], ratio: float, per_second: float) -> None:
    """Retries ≤ what was saved at first, the parts paid in, and the seconds that passed."""
    budget, now, taken, paid = Budget(ratio, per_second, now=0.0), 0.0, 0, 0
    for seconds, first in steps:
        now += seconds
        if first:
            budget.pay_in()
            paid += 1
        else:
            taken += budget.take(now)
    assert taken <= max(1.0, per_second * SAVED_SECONDS) + paid * ratio + now * per_second + 1e-6


def failure(name: str, priority: int = 1) -> Failure:
    """A failed message."""
    return Failure(name, "desk", "booker", priority, 1, "handler_failed", "ValueError")


def recoveries(tokens: float = 1000.0) -> Recoveries:
    """A queue with so many retries to spend, and next to none later."""
    return Recoveries(Budget(0.0, tokens / SAVED_SECONDS, now=0.0))


def test_what_is_due_goes_by_priority_and_time() -> None:
    """Only what is due; the higher priority first; then who was due first."""
    queue = recoveries()
    for name, priority, due in [("late", 3, 9.0), ("b", 1, 2.0), ("a", 1, 1.0), ("top", 3, 2.5)]:
        queue.failed(failure(name, priority), due)
    assert queue.ready(0.5) == []
    assert queue.seconds_left(0.5) == 0.5
    assert queue.ready(3.0) == ["top", "a", "b"]
    assert queue.seconds_left(3.0) == 6.0
    assert [case.state for case in queue.all()] == ["retrying", "waiting", "retrying", "retrying"]


def test_without_a_token_a_retry_waits_and_is_not_lost() -> None:
    """The budget is for the whole bus; what it holds back is pending, and goes on when there is a token."""
    queue = recoveries(tokens=2.0)
    for name in "abc":
        queue.failed(failure(name), 0.0)
    assert queue.ready(0.0) == ["a", "b"]
    assert queue.find("c").state == "pending"  # type: ignore[union-attr]
    assert queue.seconds_left(0.0) == pytest.approx(5.0)
    queue.failed(failure("d"), 1.0)
    assert queue.seconds_left(0.0) == 1.0  # to say of it that it is pending, too
    assert queue.ready(1.0) == []
    queue.ended("d", "cancelled")
    assert queue.ready(5.0) == ["c"]


def test_a_pause_holds_all_back() -> None:
    """What is due meanwhile is pending, and goes on in order afterwards."""
    queue = recoveries()
    queue.failed(failure("a"), 1.0)
    queue.paused = True
    assert queue.ready(2.0) == []
    assert queue.find("a").state == "pending"  # type: ignore[union-attr]
    assert queue.seconds_left(2.0) is None
    queue.paused = False
    assert queue.ready(2.0) == ["a"]


def test_a_message_is_in_the_queue_once() -> None:
    """One that fails again, ends or is parked is not sent on by what was said of it before."""
    queue = recoveries()
    queue.failed(failure("again"), 1.0)
    queue.failed(failure("again"), 5.0)
    queue.failed(failure("ended"), 1.0)
    queue.ended("ended", "cancelled")
    queue.failed(failure("parked"), 1.0)
    queue.parked(failure("parked"))
    assert queue.ready(2.0) == []
    assert queue.ready(5.0) == ["again"]
    assert {case.failure.message_id: case.state for case in queue.all()} == {
        "ended": "cancelled",
        "parked": "pending",
        "again": "retrying",
    }


def test_what_is_over_is_forgotten_in_the_end() -> None:
    """The view is bounded: the newest that are over stay in it."""
    queue = recoveries()
    for number in range(ENDED_KEPT + 5):
        queue.failed(failure(str(number)), 0.0)
        queue.ended(str(number), "succeeded")
    assert [case.failure.message_id for case in queue.all()] == [str(n) for n in range(5, ENDED_KEPT + 5)]
    queue.ended("unknown", "failed")
