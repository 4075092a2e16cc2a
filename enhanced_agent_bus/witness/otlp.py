"""An OpenTelemetry collector: each checkpoint is a log record, sent by OTLP over HTTP. Needs the extra `otlp`.

The OTEL_* variables say where to, with which headers, certificates, compression and timeout; an address behind
`otlp:` goes before them.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from enhanced_agent_bus.ports import SignedNote

EVENT: Final = "eab.checkpoint"


class OtlpWitness:
    """Fills `ports.Witness` with a collector; what was sent there cannot be read back."""

    def __init__(self, url: str, endpoint: str) -> None:
        self.url = url
        self._exporter = OTLPLogExporter(endpoint=endpoint or None)
        self._resource = Resource.create()
        self._scope = InstrumentationScope("enhanced_agent_bus")
        self._stopping = threading.Lock()
        self._stopped = False

    def newest(self, origin: str) -> SignedNote | None:  # noqa: ARG002 - nobody can say
        return None

    def take(self, note: SignedNote) -> None:
        record = LogRecord(
            timestamp=time.time_ns(),
            severity_number=SeverityNumber.INFO,
            severity_text="INFO",
            body=note.text,
            event_name=EVENT,
            attributes={"eab.origin": note.origin, "eab.size": note.size, "eab.root": note.root.hex()},
        )
        sent = self._exporter.export([ReadableLogRecord(record, self._resource, self._scope)])
        if sent is not LogRecordExportResult.SUCCESS:
            raise ConnectionError("the collector did not take it (the OTEL_* variables say which one is asked)")

    def notes(self) -> None:
        """Whoever runs the collector has them."""
        return

    def stop(self) -> None:
        with self._stopping:
            if not self._stopped:
                self._stopped = True
                self._exporter.shutdown()  # type: ignore[no-untyped-call]
