"""Write measured figures into README.md, between `<!-- figures -->` and `<!-- /figures -->`: `make figures` runs this.

It reads what `eab --json bench` prints, from standard input, and invents nothing: without figures README stays as it
is.
"""

import json
import sys
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
# `memory` and `growth` say how figures change; they are for `eab bench`, not for one screen.
ROWS = frozenset(
    {"send", "request", "durable", "durable_request", "decision", "server", "cache", "start", "log", "peers", "nats"}
)


THOUSAND = 1000


def number(value: float) -> str:
    """Three digits that count, with commas from a thousand on."""
    return f"{value:,.0f}" if abs(value) >= THOUSAND else f"{value:.3g}"


def row_of(figure: dict[str, Any]) -> str:
    """One line of the table."""
    low, median, high = (number(figure[key]) for key in ("min", "median", "max"))
    target, reach = figure["target"], figure["note"]
    if target is not None:
        reach = f"{target['side']} {number(target['value'])}{'' if figure['reached'] else ': missed'}"
    return f"| {figure['what']} | {median} {figure['unit']} | {low} to {high} | {reach} |"


def section(measured: dict[str, Any]) -> str:
    """The heading, the table, and on what it was measured."""
    figures = [
        item for item in measured["figures"] if item["row"] in ROWS and (item["target"] or item["row"] == "peers")
    ]
    if not figures:
        raise SystemExit("figures: there is none for README in what was measured; give the whole of `eab --json bench`")
    there = measured["machine"]
    place = (
        f"By `eab bench` on a shared machine with {there['cores']} cores, {there['system']}, Python {there['python']}, "
        f"SQLite {there['sqlite']}, OPA {there['opa']}: {measured['workload']}. Judge by the ratios; `make bench` "
        "measures yours."
    )
    head = ["| what | median | lowest to highest run | to reach |", "|---|---|---|---|"]
    lines = ["## Measured", "", place, "", *head, *map(row_of, figures)]
    return "\n".join(lines)


def main() -> None:
    """Replace what stands between the markers."""
    try:
        measured = json.load(sys.stdin)
    except ValueError:
        raise SystemExit("figures: standard input is not the JSON of `eab --json bench`") from None
    before, begin, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"figures: {README} has no {BEGIN} and {END}")
    README.write_text(f"{before}{BEGIN}\n{section(measured)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
