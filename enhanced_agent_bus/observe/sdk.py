"""OpenTelemetry's SDK for a program that `eab` starts, where the OTEL_* variables ask for one.

OTEL_TRACES_EXPORTER and OTEL_METRICS_EXPORTER name exporters (otlp, console, none, or those of other packages); an
address in OTEL_EXPORTER_OTLP_ENDPOINT asks for otlp where they say nothing. All else that the SDK and its exporters
read of the environment they read themselves. Exporters work in threads of the SDK behind bounded queues.
Not here: what is told to them (`telemetry.py`).
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry import metrics, trace

from enhanced_agent_bus.errors import ConfigInvalid
from enhanced_agent_bus.message import shown
from enhanced_agent_bus.observe.telemetry import is_nobody

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

SIGNALS: Final = ("traces", "metrics")
STOP_SECONDS_MAX: Final = 3.0  # for what is left to send; then the process ends without it
NOISE_CHARS_MAX: Final = 300
EXTRA: Final = "pip install 'opa-agent-bus[otlp]'"
SERVICE: Final = "eab"


class _Asked(NamedTuple):
    """An exporter that the environment asks for."""

    signal: str
    name: str
    variable: str  # which asks for it

    @property
    def named(self) -> bool:
        """By its name; an address alone may be the machine's, and meant for other programs."""
        return self.variable.endswith("_EXPORTER")

    @property
    def sentence(self) -> str:
        return f"{self.variable} asks for the exporter {shown(self.name)}"


@contextmanager
def telemetry(seconds: float = STOP_SECONDS_MAX) -> Iterator[None]:
    """Within this, the program has the providers that the environment asks for; leaving takes a bounded time.

    A provider that the program has set before is left as it is. Raises: ConfigInvalid.
    """
    exporters = asked(os.environ)
    if not is_nobody(trace.get_tracer_provider()):
        exporters = [each for each in exporters if each.signal != "traces"]
    if not is_nobody(metrics.get_meter_provider()):
        exporters = [each for each in exporters if each.signal != "metrics"]
    if not exporters:
        yield
        return
    stops = _start_what_is_there(exporters)
    try:
        yield
    finally:
        _stop(stops, seconds)


def asked(environ: Mapping[str, str]) -> list[_Asked]:
    """Which exporters the environment asks for, of which signal."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    found: list[_Asked] = []
    for signal in SIGNALS:
        variable = f"OTEL_{signal.upper()}_EXPORTER"
        named = environ.get(variable, "")
        if not named:
            addresses = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
            variable = next((address for address in addresses if environ.get(address)), "")
            named = "otlp" if variable else ""
        names = dict.fromkeys(name.strip().lower() for name in named.split(","))
        found += [_Asked(signal, name, variable) for name in names if name not in ("", "none")]
    return found


class _Missing(Exception):
    """No package that is installed has the exporter that is wanted; `error` says so."""

    def __init__(self, wanted: _Asked, mend: str) -> None:
        super().__init__(wanted.sentence)
        off = f"{wanted.variable}=none" if wanted.named else "OTEL_SDK_DISABLED=true"
        what = f"{wanted.sentence}, and no package that is installed has it"
        self.wanted = wanted
        self.error = ConfigInvalid(what, remedy=f"{mend}, or set {off}")


def _start_what_is_there(exporters: list[_Asked]) -> list[Callable[[], object]]:
    """As `_start`; what only an address asks for, and is missing, is told and left out. Raises: ConfigInvalid."""
    try:
        return _start(exporters) if exporters else []
    except _Missing as missing:
        if missing.wanted.named:
            raise missing.error from None
        sys.stderr.write(f"telemetry: nothing is sent: {missing.error.message}: {missing.error.remedy}\n")
        return _start_what_is_there([each for each in exporters if each.named])


def _start(exporters: list[_Asked]) -> list[Callable[[], object]]:
    """Makes the providers; answers how each is stopped. Raises: ConfigInvalid, _Missing."""
    try:
        from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415 - the extra
        from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ModuleNotFoundError:
        raise _missing(exporters[0]) from None
    _quieten()
    made = [(each.signal, _exporter(each)) for each in exporters]  # all, before any thread is started
    stops: list[Callable[[], object]] = []
    spans = [exporter for signal, exporter in made if signal == "traces"]
    if spans:
        tracers = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        for exporter in spans:
            tracers.add_span_processor(BatchSpanProcessor(exporter))
        trace.set_tracer_provider(tracers)
        stops.append(tracers.shutdown)
    readers = [
        exporter if isinstance(exporter, MetricReader) else PeriodicExportingMetricReader(exporter)
        for signal, exporter in made
        if signal == "metrics"
    ]
    if readers:
        meters = MeterProvider(readers, resource=_resource(), shutdown_on_exit=False)
        metrics.set_meter_provider(meters)
        stops.append(meters.shutdown)
    return stops


def _stop(stops: list[Callable[[], object]], seconds: float) -> None:
    """Sends what is left, of each signal at once. A collector that does not answer is not waited for any longer."""

    def stopped(stop: Callable[[], object]) -> None:
        try:
            stop()
        except Exception as error:  # noqa: BLE001 - other people's code, at the end of a thread
            logging.getLogger(__name__).warning("an exporter raised %s at the end", type(error).__name__)

    threads = [threading.Thread(target=stopped, args=(stop,), daemon=True, name="eab-telemetry") for stop in stops]
    for thread in threads:
        thread.start()
    until = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))


def _resource() -> Resource:
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415 - the extra

    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        return resource.merge(Resource({SERVICE_NAME: SERVICE}))
    return resource


def _exporter(wanted: _Asked) -> Any:
    """Raises: ConfigInvalid, _Missing."""
    name = wanted.name
    if name == "otlp":
        signal = f"OTEL_EXPORTER_OTLP_{wanted.signal.upper()}_PROTOCOL"
        protocol = os.environ.get(signal) or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
        name = f"otlp_proto_{protocol.partition('/')[0]}"
    found: list[EntryPoint] = list(entry_points(group=f"opentelemetry_{wanted.signal}_exporter", name=name))
    if not found:
        raise _missing(wanted, name)
    try:
        kind = found[0].load()
        return kind(out=sys.stderr) if name == "console" else kind()  # standard output is for answers
    except ImportError:
        raise _missing(wanted, name) from None
    except Exception as error:  # whatever it makes of the environment; its text may have what stands there
        raise ConfigInvalid(
            f"{wanted.sentence}, which could not be made of the OTEL_* variables: {type(error).__name__}",
            remedy="mend them, or set OTEL_SDK_DISABLED=true",
        ) from error


def _missing(wanted: _Asked, name: str = "otlp_proto_http") -> _Missing:
    mend = EXTRA if name in ("otlp_proto_http", "console") else f"install the package that has {shown(name)}"
    return _Missing(wanted, mend)


def _quieten() -> None:
    """What the SDK and its exporters log becomes one line each on standard error, without tracebacks or repetition."""
    handler = _OneLine()
    for name in ("opentelemetry", "urllib3"):
        logger = logging.getLogger(name)
        if not logger.hasHandlers():
            logger.addHandler(handler)
            logger.propagate = False


class _OneLine(logging.Handler):
    """Each warning once a process."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg not in self._said:
            self._said.add(str(record.msg))
            line = record.getMessage().partition("\n")[0]
            sys.stderr.write(f"telemetry: {line[:NOISE_CHARS_MAX].encode('ascii', 'backslashreplace').decode()}\n")
