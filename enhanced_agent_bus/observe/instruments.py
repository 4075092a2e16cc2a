"""The metrics of all buses of this process: what is counted, in which units, under which labels.

Labels are few: agents and message ids are none, and of tenants and codes only so many are told apart.
Not here: when something is counted (`telemetry.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final
from weakref import WeakKeyDictionary

from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider, NoOpMeter, Observation

from enhanced_agent_bus.ports import Load

SCOPE: Final = "enhanced_agent_bus"
LABELS_MAX: Final = 100  # values of one label that are told apart; what comes after them is OTHER
OTHER: Final = "other"
LOOKS_MAX: Final = 3  # how often a bus is looked at that changes while it is looked at; then it is left out for once
SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Label:
    """The values of one label, as many as there may be."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        if value in self._known:
            return value
        if len(self._known) >= LABELS_MAX:
            return OTHER
        self._known.add(value)
        return value


class Instruments:
    """What one provider measures with: made once for it, since it makes no instrument twice and forgets none."""

    def __init__(self, meter: Meter) -> None:
        self._tenant = Label()
        self._code = Label()
        self.decisions = meter.create_counter("eab.decisions", "{decision}", "Decisions that are on disk.")
        self.outcomes = meter.create_counter("eab.outcomes", "{outcome}", "How handler runs and messages ended.")
        self.unrecorded = meter.create_counter("eab.unrecorded", "{record}", "Records that could not be written.")
        self.decide = _histogram(meter, "eab.decide.duration", "From the recipient found until it was decided.")
        self.record = _histogram(meter, "eab.record.duration", "From decided until the decision was on disk.")
        self.deliver = _histogram(meter, "eab.deliver.duration", "Runs of handlers.")
        self.looks: list[Callable[[], Load]] = []  # of the buses that are open
        meter.create_observable_gauge(
            "eab.messages", [self._messages], "{message}", "Messages in each state, over the whole log."
        )
        meter.create_observable_gauge(
            "eab.queue.age", [self._age], "s", "For how long the oldest queued message has waited."
        )

    def labels(self, tenant: str, code: str | None) -> dict[str, str]:
        """Of whom, and with which code where there is one."""
        labels = {"tenant": self._tenant(tenant)}
        if code is not None:
            labels["code"] = self._code(code)
        return labels

    def _messages(self, _options: CallbackOptions) -> Iterable[Observation]:
        counts: dict[str, int] = {}
        for load in self._loads():
            for state, count in load.accounting.items():
                if state != "accepted":  # the sum of the others
                    counts[state] = counts.get(state, 0) + count
        return [Observation(count, {"state": state}) for state, count in counts.items()]

    def _age(self, _options: CallbackOptions) -> Iterable[Observation]:
        loads = self._loads()
        return [Observation(max(load.oldest_seconds for load in loads))] if loads else []

    def _loads(self) -> Sequence[Load]:
        return [load for look in list(self.looks) if (load := _seen(look)) is not None]


def _histogram(meter: Meter, name: str, description: str) -> Histogram:
    return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=SECONDS)


def _seen(look: Callable[[], Load]) -> Load | None:
    """A reader asks from a thread of its own, while the loop goes on."""
    for _ in range(LOOKS_MAX):
        try:
            return look()
        except RuntimeError:  # a container changed its size meanwhile
            continue
    return None


#: Of each provider that is in use; it goes with it.
_made: WeakKeyDictionary[MeterProvider, Instruments] = WeakKeyDictionary()


def instruments_of(provider: MeterProvider | None) -> Instruments:
    """The instruments of a provider; without one, some that measure nothing."""
    if provider is None:
        return Instruments(NoOpMeter(SCOPE))
    made = _made.get(provider)
    if made is None:
        made = _made[provider] = Instruments(provider.get_meter(SCOPE))
    return made
