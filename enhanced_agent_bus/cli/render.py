"""How values are shown: JSON for programs, tables and plain lines for people.

Whatever came from a message, a log or a file goes through `safe`, so that nothing in it can drive a terminal.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDE: Final = 10_000  # columns where the output is no terminal: nothing is cut for the next program

#: C0 and C1 controls, line and paragraph separators, marks that turn the direction of text, lone surrogates.
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def safe(text: object) -> str:
    """The text on one line, with every character that could drive a terminal written as an escape."""
    return _UNSAFE.sub(lambda found: ascii(found.group())[1:-1], str(text))


def safe_lines(text: str) -> str:
    """As `safe`, with line breaks kept."""
    return "\n".join(safe(line) for line in text.split("\n"))


def echo(line: str = "", *, error: bool = False) -> None:
    """One line of our own making to standard output or standard error.

    Where nobody reads standard error any more the line is dropped: what the command does is worth more than its notes.
    """
    with suppress(BrokenPipeError) if error else nullcontext():
        print(line, file=sys.stderr if error else sys.stdout)


def print_json(value: object) -> None:
    """One document on one line, ASCII only."""
    echo(json.dumps(value))


def print_json_lines(values: Iterable[object]) -> None:
    """One document a line."""
    for value in values:
        print_json(value)


def console(*, error: bool = False) -> Console:
    """The terminal, or standard output as wide as it takes."""
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    width = None if stream.isatty() else WIDE
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "", empty: str = "") -> None:
    """A table a person can read; numbers to the right. `empty` is said in its place where there are no rows."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, title=title or None, title_justify="left", pad_edge=False, padding=(0, 2, 0, 0))
    kept = [list(row) for row in rows]
    if empty and not kept:
        echo(empty)
        return
    for place, name in enumerate(columns):
        numbers = bool(kept) and all(isinstance(row[place], int | float) for row in kept)
        table.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in kept:
        table.add_row(*(Text(safe("" if cell is None else cell)) for cell in row))
    _print(table)


def print_pairs(pairs: Mapping[str, object] | Iterable[tuple[str, object]]) -> None:
    """Names and values, one a line."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    items = pairs.items() if isinstance(pairs, Mapping) else pairs
    for name, value in items:
        table.add_row(Text(safe(name)), Text(safe("" if value is None else value)))
    _print(table)


def quoted(text: str) -> str:
    """A word of a command line that can be copied into a shell as it stands."""
    return shlex.quote(safe(text))


def counted(count: int, what: str, many: str | None = None) -> str:
    """1 rule, 2 rules."""
    return f"{count} {what}" if count == 1 else f"{count} {many or what + 's'}"


def _print(table: Table) -> None:
    """Without the spaces that fill up the last column."""
    terminal = console()
    with terminal.capture() as capture:
        terminal.print(table)
    for line in capture.get().splitlines():
        echo(line.rstrip())


def compact(value: object) -> str:
    """A JSON value on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))
