"""The log at rest: how soon a home with many records is open again, and how fast its log is verified."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Final

from enhanced_agent_bus import open_bus
from enhanced_agent_bus.audit.several import verify
from enhanced_agent_bus.audit.verify import read_key
from enhanced_agent_bus.bench.figures import Figure, at_least, at_most
from enhanced_agent_bus.bench.house import Scale, drive, house

RECORDS_A_MESSAGE: Final = 2  # its decision and its outcome
IN_FLIGHT: Final = 512


async def log(folder: Path, scale: Scale) -> list[Figure]:
    """Fills a home through the bus, then opens and verifies it again and again."""
    restarts, rates = [], []
    with tempfile.TemporaryDirectory(dir=folder) as place:
        home = Path(place) / "home"
        async with house(home, folder / "constitution", scale) as built:
            records = built.bus.status().records
            missing = max(0, scale.log_records - records) // RECORDS_A_MESSAGE
            await drive(built.send, built.some(missing), IN_FLIGHT)
        key = read_key((home / "keys" / "log.vkey").read_text(encoding="ascii"))
        size = 0
        for _ in range(scale.runs):
            started = time.perf_counter()
            async with open_bus(home):
                restarts.append(time.perf_counter() - started)
            started = time.perf_counter()
            report = verify(home, key)
            rates.append(report.size / (time.perf_counter() - started))
            size = report.size
            if not report.ok:
                raise RuntimeError(f"the log of the benchmark is not verified: {report.first_bad}")
    return [
        Figure("log", f"restart with {size:,} records", "s", tuple(restarts), at_most(2.0), note="100,000 with --full"),
        Figure("log", "audit verify", "records/s", tuple(rates), at_least(300_000)),
    ]
