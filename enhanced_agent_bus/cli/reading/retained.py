"""What retention would erase in a home that no process has open: by its settings, and the machine's clock."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from enhanced_agent_bus.cli.reading.home import database
from enhanced_agent_bus.cli.session import Json
from enhanced_agent_bus.clock import SystemClock
from enhanced_agent_bus.ledger import erasing, sql
from enhanced_agent_bus.outcome import LegalHold, Retention
from enhanced_agent_bus.retention.holds import SETTING, Holds
from enhanced_agent_bus.settings import load_settings

PAGE_ROWS = 500
DAY_US = 86_400_000_000


def holds_of(home: Path) -> list[LegalHold]:
    """The legal holds of a home. Raises: StoreCorrupt."""
    with database(home) as connection:
        row = connection.execute(sql.SETTING, (SETTING,)).fetchone()
    return list(Holds(None if row is None else row[0]))


def retained(home: Path) -> dict[str, Json]:
    """As a running bus says it (`Retention`). Raises: ConfigInvalid; StoreCorrupt."""
    audit = load_settings(home).audit
    now_us = SystemClock().now_us()
    due, left = {"payloads": 0, "texts": 0}, 0
    with database(home) as connection:
        row = connection.execute(sql.SETTING, (SETTING,)).fetchone()
        holds = Holds(None if row is None else row[0])
        for kind, days in (("payloads", audit.keep_payloads_days), ("texts", audit.keep_texts_days)):
            after = -1
            while days:
                before_us = now_us - int(days * DAY_US)
                page, after = erasing.contents_before(connection, kind, before_us, after, PAGE_ROWS)
                for content in page:
                    if holds.why_left(content) is not None:
                        left += 1
                    else:
                        due[kind] += len(content.erased.payloads) + len(content.erased.texts)
                if after < 0:
                    break
    report = Retention(
        audit.keep_payloads_days, audit.keep_texts_days, audit.keep_floor_days, due["payloads"], due["texts"], left
    )
    return asdict(report)
