"""Telemetry: what a program's OpenTelemetry providers hear of the road, and that they cannot change what happens on it.

The SDK's own exporters in memory hear what a bus says; `eab run` starts an SDK of its own, and a real socket is its
collector.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from enhanced_agent_bus import Agent, AgentBus, Message, Retry
from enhanced_agent_bus.cli.app import run_command
from enhanced_agent_bus.observe import sdk, telemetry
from tests.developer import Inbox, small_bus, until
from tests.otlp import collector
from tests.support import write_constitution

SECRET: Final = "geheim-4711"
TWICE: Final = Retry.immediate(attempts=2)


@dataclass
class Heard:
    """What a program's providers have got."""

    spans_in: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    reader: InMemoryMetricReader = field(default_factory=InMemoryMetricReader)
    tracers: TracerProvider = field(default_factory=lambda: TracerProvider(shutdown_on_exit=False))
    meters: MeterProvider = field(init=False)

    def __post_init__(self) -> None:
        self.tracers.add_span_processor(SimpleSpanProcessor(self.spans_in))
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans_in.get_finished_spans() if span.name == name]

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        """Labels and value (of a histogram its count) of each point of a metric."""
        data = self.reader.get_metrics_data()
        found = [] if data is None else data.resource_metrics
        return [
            (dict(point.attributes or {}), getattr(point, "value", None) or getattr(point, "count", 0))
            for resource in found
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def text(self) -> str:
        """All of it, as an exporter would write it."""
        data = self.reader.get_metrics_data()
        spans = [span.to_json() for span in self.spans_in.get_finished_spans()]
        return "\n".join([*spans, "" if data is None else data.to_json()])


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    """The providers of this program, for one test: OpenTelemetry lets a process set them but once."""
    found = Heard()
    monkeypatch.setattr(telemetry, "get_tracer_provider", lambda: found.tracers)
    monkeypatch.setattr(telemetry, "get_meter_provider", lambda: found.meters)
    return found


async def office(bus: AgentBus, handler: Any, **settings: Any) -> Agent:
    """A desk that sends to a booker."""
    await bus.register("booker", handler, tenant="acme", **settings)
    return await bus.register("desk", tenant="acme", roles=["boss"])


def parent_of(span: ReadableSpan) -> int:
    """The id of the span that it is below; 0 where it begins a trace."""
    return span.parent.span_id if span.parent is not None else 0


def own(span: ReadableSpan) -> int:
    """Its own id."""
    assert span.context is not None
    return int(span.context.span_id)


def attributes(span: ReadableSpan) -> Mapping[str, Any]:
    """What it says."""
    return span.attributes or {}


async def test_a_message_is_a_span_below_that_of_its_sender(heard: Heard, tmp_path: Path) -> None:
    """Its decision and its record are events, its handler a span below it, and what the handler does and answers is
    below that; whoever registered the agents is no parent. Headers, and with them the digest, stay as they were given.
    """
    tracer = heard.tracers.get_tracer("app")
    got: list[Message] = []

    async def book(message: Message) -> dict[str, Any]:
        got.append(message)
        with tracer.start_as_current_span("booking"):
            return {"trip": 7}

    with tracer.start_as_current_span("registering"):
        async with small_bus(tmp_path) as bus:
            desk = await office(bus, book)
            with tracer.start_as_current_span("asking"):
                reply = await desk.request("booker", {"trip": 7}, timeout=10)
            status = bus.status()
    [asking], [booking], [deliver] = (heard.spans(name) for name in ("asking", "booking", "eab.deliver"))
    message, answer = sorted(heard.spans("eab.message"), key=lambda span: span.start_time or 0)
    chain = [message, deliver, booking, answer]
    assert [parent_of(span) for span in chain] == [own(asking), own(message), own(deliver), own(deliver)]
    assert {span.context.trace_id for span in (asking, *chain) if span.context} == {asking.context.trace_id}
    assert [event.name for event in message.events] == ["eab.decided", "eab.recorded"]
    said = attributes(message)
    assert (said["eab.message_id"], said["eab.type"], said["eab.verdict"]) == (got[0].id, "query", "allow")
    assert (said["eab.tenant"], said["eab.constitution"], said["eab.revision"]) == ("acme", status.constitution, 1)
    assert str(said["eab.decision_id"]).startswith(got[0].id)
    assert "eab.code" not in said
    assert attributes(answer)["eab.cause"] == got[0].id
    assert (reply.headers, got[0].headers) == ({}, {})


async def test_what_comes_later_is_below_the_message_too(heard: Heard, tmp_path: Path) -> None:
    """A retry's decision and each run are spans below the message; a run that failed has its code."""
    async with small_bus(tmp_path) as bus:
        desk = await office(bus, Inbox(OSError("the line is busy")), retry=TWICE)
        receipt = await desk.send("booker")
        assert (await receipt.outcome(timeout=10)).state == "delivered"
        refused = await desk.send("nobody")
    [message] = [span for span in heard.spans("eab.message") if attributes(span)["eab.verdict"] == "allow"]
    [again] = heard.spans("eab.decide")
    runs = heard.spans("eab.deliver")
    assert {parent_of(span) for span in (again, *runs)} == {own(message)}
    assert (attributes(again)["eab.why"], attributes(again)["eab.attempt"]) == ("retry", 2)
    assert [attributes(run).get("eab.code") for run in runs] == ["handler_failed", None]
    assert [run.status.is_ok for run in runs] == [False, True]
    [no] = [span for span in heard.spans("eab.message") if attributes(span)["eab.verdict"] == "refuse"]
    assert attributes(no)["eab.code"] == refused.code == "recipient_unknown"


async def test_a_message_of_an_earlier_process_begins_a_trace(heard: Heard, tmp_path: Path) -> None:
    """What was parked when a home was closed is decided anew in a trace of its own, and its run is below that."""
    async with small_bus(tmp_path) as bus:
        desk = await office(bus, None)
        receipt = await desk.send("booker")
    inbox = Inbox()
    with heard.tracers.get_tracer("app").start_as_current_span("registering"):
        async with small_bus(tmp_path) as bus:
            await office(bus, inbox)
            assert (await bus.outcome(receipt.message_id, timeout=10)).state == "delivered"
    [again], [run] = heard.spans("eab.decide"), heard.spans("eab.deliver")
    assert (again.parent, parent_of(run)) == (None, own(again))
    assert attributes(again)["eab.message_id"] == attributes(run)["eab.message_id"] == receipt.message_id


async def test_what_is_held_is_heard_of_at_once(heard: Heard, tmp_path: Path) -> None:
    """Its span does not stay open until somebody approves; the release is a decision below it."""
    rule = {"large": 'admit if true\n\nhold contains {"approvers": 1, "roles": ["boss"], "expires_in": 3600}'}
    async with small_bus(tmp_path, rule) as bus:
        desk = await office(bus, Inbox())
        boss = await bus.register("anna", tenant="acme", roles=["boss"])
        receipt = await desk.send("booker")
        [message] = heard.spans("eab.message")
        assert attributes(message)["eab.verdict"] == "hold"
        with heard.tracers.get_tracer("app").start_as_current_span("approving"):
            await boss.approve(receipt.message_id)
        assert (await receipt.outcome(timeout=10)).state == "delivered"
    [release] = heard.spans("eab.decide")
    assert (attributes(release)["eab.why"], parent_of(release)) == ("release", own(message))


async def test_metrics_say_what_the_bus_says(heard: Heard, tmp_path: Path) -> None:
    """Decisions by verdict and code, outcomes by state, times of each station, and the accounting while it is open."""
    async with small_bus(tmp_path) as bus:
        desk = await office(bus, Inbox(OSError("busy"), OSError("busy")), retry=TWICE)
        await bus.register("absent", tenant="acme")
        ends = [await (await desk.send("booker", {"n": n})).outcome(timeout=10) for n in range(3)]
        assert [end.state for end in ends] == ["dead_lettered", "delivered", "delivered"]
        await desk.send("absent")
        await desk.send("nobody")
        states = {labels["state"]: count for labels, count in heard.points("eab.messages")}
        assert states == {state: n for state, n in bus.status().accounting.items() if state != "accepted"}
        assert heard.points("eab.queue.age") == [({}, 0)]
    decisions = {(label["verdict"], label["why"], label.get("code")): n for label, n in heard.points("eab.decisions")}
    refused = ("refuse", "send", "recipient_unknown")
    assert decisions == {("allow", "send", None): 4, ("allow", "retry", None): 1, refused: 1}
    outcomes = {(label["state"], label.get("code")): n for label, n in heard.points("eab.outcomes")}
    dead = ("dead_lettered", "attempts_exhausted")
    assert outcomes == {("failed", "handler_failed"): 1, dead: 1, ("delivered", None): 2}
    assert {label["tenant"] for name in ("eab.decisions", "eab.outcomes") for label, _ in heard.points(name)} == {
        "acme"
    }
    assert {label["verdict"]: n for label, n in heard.points("eab.decide.duration")} == {"allow": 5, "refuse": 1}
    assert heard.points("eab.record.duration") == [({}, 6)]
    assert sum(count for _, count in heard.points("eab.deliver.duration")) == 4
    assert not heard.points("eab.messages"), "a bus that is closed has nothing under way"


async def test_no_secret_is_in_a_span_a_metric_or_a_line(
    heard: Heard, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Payload, headers, a handler's exception, a reply and a rule's own words are heard of by nobody."""
    caplog.set_level(logging.DEBUG)
    rules = {
        "word": f'admit if not input.message.payload.refuse\n\nmessage := "{SECRET}"\n\nremedy := "{SECRET}"',
    }
    async with small_bus(tmp_path, rules) as bus:
        desk = await office(bus, Inbox(OSError(SECRET), {"reply": SECRET}), retry=TWICE)
        receipt = await desk.send("booker", {"note": SECRET}, headers={"note": SECRET})
        assert (await receipt.outcome(timeout=10)).reply is not None
        refused = await desk.send("booker", {"refuse": SECRET})
        await desk.send("booker", {"n": float("nan"), "note": SECRET})
        await desk.send(SECRET.upper() + " \n", {})
    assert SECRET in repr(refused.reasons), "the sender is told"
    assert len(heard.spans("eab.message")) == 5  # with the reply
    assert SECRET not in (heard.text() + caplog.text).lower()


async def test_labels_are_bounded(heard: Heard, tmp_path: Path) -> None:
    """A thousand agents of many tenants: no agent is a label, and what comes after so many tenants is `other`."""
    async with small_bus(tmp_path, home=":memory:", limits={"mailbox": 1000}) as bus:
        await bus.register("sink", tenant="tenant-0")
        for number in range(1000):
            agent = await bus.register(f"agent-{number}", tenant=f"tenant-{number % 150}")
            assert (await agent.send("sink")).ok
    data = heard.reader.get_metrics_data()
    assert data is not None
    assert "agent-1" not in data.to_json()
    points = heard.points("eab.decisions")
    assert len({labels["tenant"] for labels, _ in points}) == 101
    assert {labels["tenant"]: count for labels, count in points}["other"] > 100
    assert sum(count for _, count in points) == 1000


class Broken(SpanProcessor):
    """Raises wherever it is called."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002 - the SDK's
        raise ValueError(SECRET)

    def on_end(self, span: ReadableSpan) -> None:  # noqa: ARG002 - the SDK's
        raise ValueError(SECRET)


async def test_telemetry_that_raises_changes_nothing(
    heard: Heard, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Messages are decided, delivered and answered as ever; that it broke is said once, without its words."""
    heard.tracers.add_span_processor(Broken())
    async with small_bus(tmp_path) as bus:
        desk = await office(bus, Inbox({"a": 1}, {"a": 1}))
        for _ in range(2):
            assert (await desk.request("booker", timeout=10)).payload == {"a": 1}
        assert (await desk.send("nobody")).code == "recipient_unknown"
        assert bus.status().accounting["delivered"] == 4
    said = [record for record in caplog.records if "telemetry" in record.message]
    assert [record.message.partition(" and ")[0] for record in said] == ["telemetry raised ValueError"]


async def test_two_buses_are_summed_and_one_that_closed_is_gone(heard: Heard, tmp_path: Path) -> None:
    """Instruments belong to the provider: a second bus, or the same home again, is counted as well as the first."""
    for _ in range(2):
        async with small_bus(tmp_path) as one, small_bus(tmp_path, home=":memory:") as two:
            for bus in (one, two):
                desk = await office(bus, None)
                await desk.send("booker")
            parked = {labels["state"]: count for labels, count in heard.points("eab.messages")}["parked"]
            assert parked == sum(bus.status().accounting["parked"] for bus in (one, two))
    assert parked == 3


# --- what `eab run` starts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, []),
        ({"OTEL_SERVICE_NAME": "desk"}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, [("traces", "otlp"), ("metrics", "otlp")]),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://x"}, [("metrics", "otlp")]),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}, [("metrics", "otlp")]),
        ({"OTEL_TRACES_EXPORTER": "console, otlp,"}, [("traces", "console"), ("traces", "otlp")]),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "True"}, []),
    ],
)
def test_an_sdk_is_started_only_when_it_is_asked_for(
    environ: dict[str, str], wanted: Sequence[tuple[str, str]]
) -> None:
    """By an exporter's name or a collector's address; a service's name alone asks for nothing."""
    assert [(each.signal, each.name) for each in sdk.asked(environ)] == wanted


APP: Final = """
from enhanced_agent_bus import Message

async def build(bus):
    async def work(message: Message) -> None:
        pass

    await bus.register("desk", tenant="acme")
    await bus.register("booker", handler=work, tenant="acme")
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an application, a constitution and lines, and no variable of OpenTelemetry set."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "desk.py").write_text(APP)
    write_constitution(tmp_path / "policies")
    line = json.dumps({"from": "desk", "to": "booker", "payload": {"note": SECRET}}) + "\n"
    (tmp_path / "lines.jsonl").write_text(line * 20)
    return tmp_path


RUN: Final = ("--json", "run", "desk.py:build", "--input", "lines.jsonl")


def run_in(place: Path, **environ: str) -> tuple[dict[str, Any], str]:
    """The summary of `eab run` with these variables, and what it said on standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "enhanced_agent_bus", *RUN],
        cwd=place,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout), done.stderr


def test_a_run_tells_the_collector_that_the_variables_name(place: Path) -> None:
    """Spans and metrics of every line, under the service's name, sent before the command ends."""
    with collector() as server:
        run_in(place, OTEL_EXPORTER_OTLP_ENDPOINT=server.address, OTEL_SERVICE_NAME="travel")
    [resource, *_] = server.traces.resource_spans
    assert {one.key: one.value.string_value for one in resource.resource.attributes}["service.name"] == "travel"
    spans = [span for one in server.traces.resource_spans for scope in one.scope_spans for span in scope.spans]
    assert [sum(span.name == name for span in spans) for name in ("eab.message", "eab.deliver")] == [20, 20]
    names = {m.name for one in server.metrics.resource_metrics for scope in one.scope_metrics for m in scope.metrics}
    assert {"eab.decisions", "eab.outcomes", "eab.decide.duration", "eab.deliver.duration"} <= names
    assert SECRET.encode() not in server.traces.SerializeToString() + server.metrics.SerializeToString()


def test_a_collector_that_hangs_holds_up_nothing(place: Path) -> None:
    """It takes connections and never answers, and the exporters would wait an hour: every line is delivered, and the
    command ends.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        summary, _ = run_in(
            place,
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{server.getsockname()[1]}",
            OTEL_EXPORTER_OTLP_TIMEOUT="3600",
            OTEL_BSP_SCHEDULE_DELAY="1",
            OTEL_METRIC_EXPORT_INTERVAL="1",
        )
        server.settimeout(1)
        server.accept()[0].close()  # it was tried
    assert (summary["lines"], summary["delivered"]) == (20, 20)


def test_a_collector_that_is_away_is_said_in_a_line(place: Path) -> None:
    """Every line is delivered, and standard error has a sentence for each kind of trouble, not one for each try."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    summary, said = run_in(place, OTEL_EXPORTER_OTLP_ENDPOINT=address, OTEL_EXPORTER_OTLP_TIMEOUT="1")
    assert summary["delivered"] == 20
    lines = [line for line in said.splitlines() if line.startswith("telemetry: ")]
    assert 1 <= len(lines) <= 4, said


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, ("OTEL_TRACES_EXPORTER asks", "'zipkin'", "OTEL_TRACES_EXPORTER=none")),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "zipkin"},
            ("OTEL_TRACES_EXPORTER asks", "'zipkin'", "OTEL_TRACES_EXPORTER=none"),
        ),
    ],
)
def test_an_exporter_that_is_not_there_is_a_sentence(
    place: Path,
    environ: dict[str, str],
    words: Sequence[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is opened: exit 2, which variable asks for what, and what to do."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert run_command(list(RUN)) == 2
    said = json.loads(capsys.readouterr().err)["error"]
    assert all(word in said["message"] + said["remedy"] for word in words), said
    assert not (place / ".eab").exists()


@pytest.mark.parametrize("lacking", ["the extra", "the package for grpc"])
def test_an_address_of_the_machine_does_not_stop_a_bus_that_cannot_send_to_it(
    lacking: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence for what is not sent, and every line is delivered: nobody has asked this bus for telemetry."""
    assert place.is_dir()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    if lacking == "the extra":
        monkeypatch.setitem(sys.modules, "opentelemetry.sdk.metrics", None)
    else:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    assert run_command(list(RUN)) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["delivered"] == 20
    [said] = [line for line in err.splitlines() if line.startswith("telemetry: ")]
    assert "OTEL_EXPORTER_OTLP_ENDPOINT asks" in said
    assert "nothing is sent" in said
    assert "OTEL_SDK_DISABLED=true" in said


def test_without_the_extra_it_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The API comes with the package, the SDK with the extra."""
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.metrics", None)
    assert run_command(list(RUN)) == 2
    said = capsys.readouterr().err
    assert "opa-agent-bus[otlp]" in said
    assert "OTEL_METRICS_EXPORTER" in said
    assert not (place / ".eab").exists()


async def test_where_nobody_listens_the_road_has_nobody_to_tell(tmp_path: Path) -> None:
    """Without a provider there is no listener at all: nothing is measured, and nothing costs."""
    async with small_bus(tmp_path) as bus:
        assert bus._desk.listener is None  # noqa: SLF001 - it shows nowhere else
        await until(lambda: bus.status().records)
