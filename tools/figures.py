"""Write measured figures between `<!-- figures -->` and `<!-- /figures -->`: `make figures` runs this.

All of them go into docs/reference/performance.md, and those that have a target, with the peers, into README.md.

It reads what `eab --json bench` prints, from standard input, and invents nothing: without figures both stay as they
are.
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "reference" / "performance.md"
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
# `memory` and `growth` say how figures change; they are for the page, not for one screen.
ROWS = frozenset(
    {"send", "request", "durable", "durable_request", "decision", "server", "cache", "start", "log", "peers", "nats"}
)


THOUSAND = 1000


def number(value: float) -> str:
    """Three digits that count, with commas from a thousand on."""
    return f"{value:,.0f}" if abs(value) >= THOUSAND else f"{value:.3g}"


def spread(figure: dict[str, Any]) -> list[str]:
    """The least, the median and the greatest of the runs."""
    return [number(figure[key]) for key in ("min", "median", "max")]


def row_of(figure: dict[str, Any]) -> str:
    """One line of the table of README."""
    low, median, high = spread(figure)
    target, reach = figure["target"], figure["note"]
    if target is not None:
        reach = f"{target['side']} {number(target['value'])}{'' if figure['reached'] else ': missed'}"
    return f"| {figure['what']} | {median} {figure['unit']} | {low} to {high} | {reach} |"


def line_of(figure: dict[str, Any]) -> str:
    """One line of the table of the page."""
    target, reached = figure["target"], {True: "reached", False: "missed", None: figure["note"]}[figure["reached"]]
    reach = "" if target is None else f"{target['side']} {number(target['value'])}"
    cells = [figure["row"], figure["what"], *spread(figure), figure["unit"], reach, reached]
    return f"| {' | '.join(cells)} |"


def place(measured: dict[str, Any]) -> str:
    """The machine."""
    there = measured["machine"]
    return (
        f"{there['cores']} cores, {there['system']}, Python {there['python']}, SQLite {there['sqlite']}, "
        f"OPA {there['opa']}"
    )


def missing(measured: dict[str, Any]) -> list[str]:
    """What was not measured, and why."""
    return [f"\nNot measured: `{row}`: {why}." for row, why in measured["missing"].items()]


def in_readme(figure: dict[str, Any]) -> bool:
    """Whether it stands on one screen: what has a target, the peers, and what nodes cost beside bare nats-py."""
    beside = figure["row"] == "peers" or (figure["row"] == "nats" and figure["unit"] == "x")
    return figure["row"] in ROWS and (figure["target"] is not None or beside)


def section(measured: dict[str, Any]) -> str:
    """Of README: the heading, the table, and on what it was measured."""
    figures = [figure for figure in measured["figures"] if in_readme(figure)]
    said = (
        f"By `eab bench` on a shared machine with {place(measured)}: {measured['workload']}. Judge by the ratios; "
        "`make bench` measures yours."
    )
    head = ["| what | median | lowest to highest run | to reach |", "|---|---|---|---|"]
    return "\n".join(["## Measured", "", said, "", *head, *map(row_of, figures), *missing(measured)])


def table(measured: dict[str, Any]) -> str:
    """Of the page: every figure."""
    said = f"{place(measured)} ({measured['machine']['cpu']}), load {measured['machine']['load']}."
    head = ["| row | what | min | median | max | unit | to reach | |", "|---|---|---|---|---|---|---|---|"]
    return "\n".join([said, "", *head, *map(line_of, measured["figures"]), *missing(measured)])


def put(file: Path, text: str) -> None:
    """Replaces what stands between the markers."""
    before, begin, rest = file.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"figures: {file} has no {BEGIN} and {END}")
    file.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """README and the page, from one measurement of all rows."""
    try:
        measured = json.load(sys.stdin)
    except ValueError:
        raise SystemExit("figures: standard input is not the JSON of `eab --json bench`") from None
    rows = {figure["row"] for figure in measured["figures"]} | set(measured["missing"])
    if not rows >= ROWS:
        lacking = ", ".join(sorted(ROWS - rows))
        raise SystemExit(f"figures: {lacking} is not in what was measured; give the whole of `eab --json bench`")
    put(README, section(measured))
    put(PAGE, table(measured))


if __name__ == "__main__":
    main()
