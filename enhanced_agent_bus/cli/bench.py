"""`eab bench`: the figures of the README on this machine, beside what they should reach and peers in the same run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from enhanced_agent_bus.cli.faults import CliError
from enhanced_agent_bus.cli.render import echo, print_json, print_table, safe
from enhanced_agent_bus.cli.session import session_of

THREE_DIGITS: Final = 999.5

if TYPE_CHECKING:
    from enhanced_agent_bus.bench.figures import Figure
    from enhanced_agent_bus.bench.rows import Ran


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("bench")(bench)


def bench(
    context: typer.Context,
    only: Annotated[
        list[str] | None, typer.Option(metavar="ROW", help="Only this row; may be given several times.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Longer and more runs, and 100,000 records.")] = False,
    stations: Annotated[
        bool, typer.Option("--stations", help="Show the time that a message spends in each station instead.")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Make homes there, on the disk to measure; by default in TMPDIR.")
    ] = None,
) -> None:
    """Measure the bus on this machine.

    Judge by the ratios: absolute figures wander on shared machines. Peers are measured where the extra `bench` is
    installed.

    Example: eab bench --only durable
    """
    import asyncio

    from enhanced_agent_bus.bench import house, rows

    session = session_of(context)
    names = only or list(rows.ROWS)
    for name in names:
        if name not in rows.ROWS:
            raise CliError(f"there is no row {name}", remedy=f"choose of {', '.join(rows.ROWS)}", code="usage")
    if folder is not None and not folder.is_dir():
        raise CliError(f"{folder} is no folder", remedy="make it, or name another", code="usage")
    scale = house.FULL if full else house.QUICK

    def told(row: str) -> None:
        echo(f"measuring: {row}", error=True)

    if stations:
        ran = asyncio.run(rows.run_stations(scale, place=folder, told=told))
    else:
        ran = asyncio.run(rows.run(names, scale, place=folder, told=told))
    if session.json:
        figures = [figure.as_json() for figure in ran.figures]
        measured = {"machine": ran.machine, "workload": rows.WORKLOAD, "figures": figures, "missing": ran.missing}
        print_json(measured)
        return
    _show_machine(ran, rows.WORKLOAD)
    if stations:
        _show_stations(ran.figures)
    else:
        _show(ran.figures)
    for row, why in ran.missing.items():
        echo(f"not measured: {row}: {why}")


def _show_machine(ran: Ran, workload: str) -> None:
    there = ran.machine
    echo(f"machine   {there['cores']} cores, {safe(there['cpu'])}, {there['system']}, load {there['load']}")
    echo(f"          Python {there['python']}, SQLite {there['sqlite']}, OPA {there['opa']}")
    echo(f"workload  {workload}")
    echo()


def _show(figures: list[Figure]) -> None:
    print_table(
        ("row", "what", "min", "median", "max", "unit", "target", ""),
        [
            (
                figure.row,
                figure.what,
                _number(min(figure.values)),
                _number(figure.median),
                _number(max(figure.values)),
                figure.unit,
                f"{figure.target.side} {_number(figure.target.value)}" if figure.target else "",
                {True: "reached", False: "missed", None: figure.note}[figure.reached],
            )
            for figure in figures
        ],
    )


def _show_stations(figures: list[Figure]) -> None:
    import statistics

    for name in _names(figures):
        print_table(
            ("station", "median us", "mean us", "p99 us", ""),
            [
                (
                    figure.what,
                    _number(figure.median),
                    _number(statistics.fmean(figure.values)),
                    _number(sorted(figure.values)[int(len(figure.values) * 0.99)]),
                    figure.note,
                )
                for figure in figures
                if figure.row == name
            ],
            title=name,
        )
        echo()


def _names(figures: Iterable[Figure]) -> list[str]:
    return list(dict.fromkeys(figure.row for figure in figures))


def _number(value: float) -> str:
    """Three digits that count, and no exponent."""
    return f"{value:.3g}" if 0 < abs(value) < THREE_DIGITS else f"{value:,.0f}"
