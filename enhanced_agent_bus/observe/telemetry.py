"""What passes on the road, as spans and metrics of whatever OpenTelemetry provider the program has set.

A message is a span, from the recipient found until its decision is on disk, with an event at each of the two; runs of
its handler and later decisions are spans below it. Attributes are ids, codes and numbers: nothing of a payload, of
headers, of an exception's text or of reasons in words is ever in one.
Not here: providers and exporters. A program sets its own; those of `eab run` are in `sdk.py`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from contextvars import Token
from typing import Concatenate, Final, NamedTuple, ParamSpec, TypeVar

from opentelemetry.context import Context, attach, detach
from opentelemetry.metrics import get_meter_provider
from opentelemetry.trace import (
    NonRecordingSpan,
    NoOpTracer,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_tracer_provider,
    set_span_in_context,
)

from enhanced_agent_bus.errors import BusError
from enhanced_agent_bus.message import Envelope
from enhanced_agent_bus.observe.instruments import SCOPE, Instruments, instruments_of
from enhanced_agent_bus.ports import Clock, Listener, Load, Said

P = ParamSpec("P")
R = TypeVar("R")
FIRST: Final = "send"
NOWHERE: Final = Context()  # a span in it begins a trace

_log = logging.getLogger(SCOPE)


def listener_for(clock: Clock) -> Listener | None:
    """Who listens in this process; None where the program has set no provider, and the road has nobody to tell."""
    tracers, meters = get_tracer_provider(), get_meter_provider()
    if is_nobody(tracers) and is_nobody(meters):
        return None
    tracer = NoOpTracer() if is_nobody(tracers) else tracers.get_tracer(SCOPE)
    return Telemetry(tracer, instruments_of(None if is_nobody(meters) else meters), clock.now_us)


def is_nobody(provider: object) -> bool:
    """Whether a provider is one of the API's own, which stand where none was set and hear nothing."""
    return type(provider).__module__.startswith(("opentelemetry.trace", "opentelemetry.metrics"))


class _Trace:
    """One decision's span while it is open, and what later spans refer to."""

    __slots__ = ("at_us", "said", "span", "tenant", "where")

    def __init__(self, span: Span, said: Said, tenant: str, at_us: int) -> None:
        self.span: Span | None = span
        self.where: SpanContext = span.get_span_context()
        self.said: Said | None = said
        self.tenant = tenant
        self.at_us = at_us


class _Run(NamedTuple):
    """A handler's span, and how to leave it."""

    span: Span
    token: Token[Context]


def _quiet(method: Callable[Concatenate[Telemetry, P], R]) -> Callable[Concatenate[Telemetry, P], R | None]:
    """Whatever a provider's sampler or processor raises is no business of the message: it is said once."""

    @functools.wraps(method)
    def called(self: Telemetry, /, *args: P.args, **kwargs: P.kwargs) -> R | None:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - other people's code, and nothing to do with the message
            self.broke(error)
            return None

    return called


class Telemetry:
    """Fills `ports.Listener` with OpenTelemetry's API."""

    def __init__(self, tracer: Tracer, instruments: Instruments, now_us: Callable[[], int]) -> None:
        self._tracer = tracer
        self._instruments = instruments
        self._now_us = now_us
        self._look: Callable[[], Load] | None = None
        self._said_broken = False

    @_quiet
    def decided(self, envelope: Envelope, said: Said, trace: object) -> object:
        at_us = self._now_us()
        before = trace if isinstance(trace, _Trace) else None
        first = before is None and said.why == FIRST
        span = self._tracer.start_span(
            "eab.message" if first else "eab.decide",
            # A sender's span is the parent. Later decisions are made in tasks of the bus, where whoever registered
            # the recipient stands as current.
            None if first else _below(before),
            SpanKind.PRODUCER if first else SpanKind.INTERNAL,
            _attributes(envelope, said),
            start_time=said.since_us * 1000,
        )
        span.add_event("eab.decided", timestamp=at_us * 1000)
        self._instruments.decide.record(max(0, at_us - said.since_us) / 1e6, {"verdict": said.verdict})
        return _Trace(span, said, envelope.tenant, at_us)

    @_quiet
    def recorded(self, trace: object, seq: int, error: BusError | None) -> None:
        if not isinstance(trace, _Trace) or trace.span is None or trace.said is None:
            return
        span, said, at_us = trace.span, trace.said, self._now_us()
        trace.span = trace.said = None
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error.code))
            self._instruments.unrecorded.add(1, {"kind": "decision"})
        else:
            span.add_event("eab.recorded", {"eab.audit_seq": seq}, timestamp=at_us * 1000)
            self._instruments.record.record(max(0, at_us - trace.at_us) / 1e6)
            labels = self._instruments.labels(trace.tenant, said.code)
            self._instruments.decisions.add(1, {**labels, "verdict": said.verdict, "why": said.why})
        span.end(at_us * 1000)

    @_quiet
    def starting(self, envelope: Envelope, attempt: int, trace: object) -> object:
        span = self._tracer.start_span(
            "eab.deliver",
            _below(trace if isinstance(trace, _Trace) else None),
            SpanKind.CONSUMER,
            {**_names(envelope), "eab.attempt": attempt},
            start_time=self._now_us() * 1000,
        )
        return _Run(span, attach(_context(span)))

    @_quiet
    def ran(self, run: object, code: str | None) -> None:
        if not isinstance(run, _Run):
            return
        detach(run.token)
        if code is not None:
            run.span.set_attribute("eab.code", code)
            run.span.set_status(Status(StatusCode.ERROR, code))
        run.span.end(self._now_us() * 1000)

    @_quiet
    def ended(
        self, envelope: Envelope, state: str, code: str | None, duration_us: int, _seq: int, error: BusError | None
    ) -> None:
        made = self._instruments
        if error is not None:
            made.unrecorded.add(1, {"kind": "outcome"})
            return
        made.outcomes.add(1, {**made.labels(envelope.tenant, code), "state": state})
        if duration_us:
            made.deliver.record(duration_us / 1e6, {"state": state})

    def watch(self, look: Callable[[], Load]) -> None:
        self._look = look
        self._instruments.looks.append(look)

    def close(self) -> None:
        if self._look is not None:
            self._instruments.looks.remove(self._look)
            self._look = None

    def broke(self, error: Exception) -> None:
        """Says so, once a bus, by the type alone: nobody knows what stands in the text."""
        if not self._said_broken:
            self._said_broken = True
            _log.warning("telemetry raised %s and misses some of what passes; messages go on", type(error).__name__)


def _below(trace: _Trace | None) -> Context:
    """Where a later span of a message belongs; a message of an earlier process begins a trace of its own."""
    return NOWHERE if trace is None else _context(NonRecordingSpan(trace.where))


def _context(span: Span) -> Context:
    return set_span_in_context(span, NOWHERE)


def _names(envelope: Envelope) -> dict[str, str]:
    """Who and what, as the record has it."""
    names = {
        "eab.message_id": envelope.id,
        "eab.type": envelope.type,
        "eab.sender": envelope.sender,
        "eab.recipient": envelope.recipient,
        "eab.tenant": envelope.tenant,
        "eab.conversation": envelope.conversation,
    }
    if envelope.cause is not None:
        names["eab.cause"] = envelope.cause
    return names


def _attributes(envelope: Envelope, said: Said) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        **_names(envelope),
        "eab.verdict": said.verdict,
        "eab.why": said.why,
        "eab.attempt": said.attempt,
        "eab.decision_id": said.decision_id,
        "eab.constitution": said.constitution,
        "eab.revision": said.revision,
    }
    if said.code is not None:
        attributes["eab.code"] = said.code
    return attributes
