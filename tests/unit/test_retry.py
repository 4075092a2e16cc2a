"""What follows a failed attempt, as a table."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enhanced_agent_bus.recovery.retry import GiveUp, Retry, RetryAfter, next_step

DEFAULT = Retry.exponential()


@pytest.mark.parametrize(
    ("attempts", "chance", "never", "step"),
    [
        (1, 0.0, None, RetryAfter(0.0)),
        (1, 0.5, None, RetryAfter(0.05)),
        (2, 0.5, None, RetryAfter(0.1)),
        (3, 0.5, None, RetryAfter(0.2)),
        (4, 0.5, None, RetryAfter(0.4)),
        (5, 0.5, None, GiveUp("attempts_exhausted")),
        (6, 0.5, None, GiveUp("attempts_exhausted")),
        (1, 0.5, "malformed", GiveUp("malformed")),
        (5, 0.5, "malformed", GiveUp("malformed")),
    ],
)
def test_the_default(attempts: int, chance: float, never: str | None, step: object) -> None:
    """Five runs, up to 0.1 s, 0.2 s, 0.4 s, 0.8 s between them; an error that is always the same ends at once."""
    assert next_step(DEFAULT, attempts, chance, never=never) == step


def test_one_attempt_is_no_retry() -> None:
    """`attempts` counts all handler runs, the first one too."""
    assert next_step(Retry.exponential(attempts=1), 1, 0.5) == GiveUp("attempts_exhausted")


@given(
    st.integers(1, 1000),
    st.floats(0, 1e6),
    st.floats(0, 1e6),
    st.integers(1, 2000),
    st.floats(0, 1, exclude_max=True),
)
def test_waits_are_bounded(attempts: int, base: float, cap: float, done: int, chance: float) -> None:
    """No wait is negative, longer than the cap or infinite, however many attempts there were; and attempts end."""
    step = next_step(Retry.exponential(attempts, base, cap), done, chance)
    if done >= attempts:
        assert step == GiveUp("attempts_exhausted")
    else:
        assert isinstance(step, RetryAfter)
        assert 0 <= step.seconds <= min(cap, base * 2.0 ** min(done - 1, 60))


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"attempts": -1}, {"base_seconds": -0.1}, {"cap_seconds": -1}])
def test_a_retry_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    """Retry.exponential says so where it is made, not where it is used."""
    with pytest.raises(ValueError, match="at least 1"):
        Retry.exponential(**wrong)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"attempts": 2.5}, "attempts is a whole number, not 2.5"),
        ({"attempts": True}, "attempts is a whole number, not True"),
        ({"attempts": "3"}, "attempts is a whole number, not '3'"),
        ({"base_seconds": "1"}, "base_seconds and cap_seconds are numbers, not '1'"),
        ({"cap_seconds": None}, "base_seconds and cap_seconds are numbers, not None"),
        ({"never": [int]}, r"never is a list of error classes or of their names, not \[<class 'int'>\]"),
        ({"never": ValueError}, "never is a list of error classes"),
        ({"never": 7}, "never is a list of error classes"),
    ],
)
@pytest.mark.parametrize("make", [Retry.exponential, Retry.linear])
def test_what_is_no_number_and_no_error_is_refused(make: Any, wrong: dict[str, Any], says: str) -> None:
    """What cannot be meant is a TypeError with the value in it."""
    with pytest.raises(TypeError, match=says):
        make(**wrong)


def test_a_retry_made_by_hand_is_checked_too() -> None:
    """The class itself takes no nonsense either."""
    with pytest.raises(ValueError, match="kind is one of exponential"):
        Retry(3, kind="sometimes")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="whole number"):
        Retry(1.0)  # type: ignore[arg-type]
