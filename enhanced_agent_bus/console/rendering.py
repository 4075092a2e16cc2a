"""How a template becomes a page: what it may call, and that nothing that comes from the log drives a page.

Not here: which page shows what (pages).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from enhanced_agent_bus.audit.gates import GATES
from enhanced_agent_bus.cli.audit.witness import witness_line
from enhanced_agent_bus.cli.render import quoted, safe
from enhanced_agent_bus.console import words
from enhanced_agent_bus.console.graph import Edge
from enhanced_agent_bus.console.rows import sign_of

FOLDER: Final = Path(__file__).resolve().parent


def templates(command: Callable[[str], str]) -> Environment:
    """The templates; `command` words a command of this console's home."""
    made = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        finalize=_text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        moment=_moment, after=_after, count=_count, sentence=_sentence, marked=_marked, duration=_duration
    )
    made.globals.update(url=url, phrase=phrase, between=between, sign_of=sign_of, words=words)
    made.globals.update(gates=GATES, witness_line=witness_line, quoted=quoted, command=command)
    return made


def url(path: str, **values: object) -> str:
    """An address of ours; what comes from the log is quoted in it."""
    return f"{path}?{urlencode({name: str(value) for name, value in values.items()})}"


def phrase(text: str) -> str:
    """Words of a query in which nothing has a meaning of its own."""
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def between(edge: Edge) -> str:
    """The decisions on what one sent the other."""
    sender = f"sender:{phrase(edge.sender)}" if edge.sender else "-sender:*"
    recipient = "-recipient:* -topic:*"
    if edge.recipient:
        topic = edge.recipient.startswith("#")
        recipient = f"topic:{phrase(edge.recipient[1:])}" if topic else f"recipient:{phrase(edge.recipient)}"
    return url("/", q=f"kind:decision {sender} {recipient}")


def _text(value: object) -> object:
    """What every `{{ }}` of a template becomes: text on one line, in which nothing drives a page or a terminal."""
    return value if isinstance(value, Markup) else safe("" if value is None else value)


def _moment(at: str | datetime) -> str:
    """A time of the log, shorter."""
    text = at if isinstance(at, str) else at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return text.replace("T", " ").removesuffix("Z")


def _after(us: int) -> str:
    seconds = us / 1e6
    return f"+{seconds:.3f} s" if abs(seconds) < 1000 else f"+{seconds / 3600:.2f} h"  # noqa: PLR2004


def _sentence(text: str) -> str:
    """As it begins a sentence; commands and names keep their letters."""
    first = text.partition(" ")[0]
    return text[:1].upper() + text[1:] if first.isalpha() and first != "eab" else text


def _marked(text: str) -> Markup:
    """With what stands in backticks as code."""
    parts = [escape(safe(part)) for part in text.split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else part for place, part in enumerate(parts)
    )


def _duration(us: int) -> str:
    return f"{us:,} µs" if us < 1000 else f"{us / 1000:,.1f} ms"  # noqa: PLR2004


def _count(number: int) -> str:
    return f"{number:,}"
