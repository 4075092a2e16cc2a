"""`eab audit report`: what the log shows for each control of a framework. Reads only."""

from __future__ import annotations

import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from enhanced_agent_bus.cli.faults import CliError
from enhanced_agent_bus.cli.render import counted, echo, print_json, safe
from enhanced_agent_bus.cli.session import Json, require_outside_homes, session_of

if TYPE_CHECKING:
    from enhanced_agent_bus.audit.mapping import Framework
    from enhanced_agent_bus.audit.report import Setup
    from enhanced_agent_bus.audit.verify import Report

SEED: Final = "1"
#: What a rule defines besides `admit`, at the beginning of a line.
_DEFINED: Final = re.compile(rb"^(hold|remember|obligations)\b", re.MULTILINE)
_RULE_FILE: Final = re.compile(r"bus/rules/([^/]+)/(?!.*_test\.rego$).*\.rego$")


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(report)


class Format(StrEnum):
    """How a report is written."""

    MARKDOWN = "markdown"
    HTML = "html"
    JSON = "json"


def report(
    context: typer.Context,
    *,
    framework: Annotated[str | None, typer.Option(metavar="ID", help="One of the mappings that are shipped.")] = None,
    mapping: Annotated[Path | None, typer.Option(metavar="FILE", help="A mapping of your own, TOML.")] = None,
    print_mapping: Annotated[bool, typer.Option("--print-mapping", help="Print the mapping, to be edited.")] = False,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Count what is not older.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Count what is older.")] = None,
    seed: Annotated[str, typer.Option(metavar="S", help="Draws the samples; the same gives the same.")] = SEED,
    checkpoint: Annotated[Path | None, typer.Option(metavar="FILE", help="One that was kept elsewhere.")] = None,
    format_: Annotated[Format | None, typer.Option("--format", help="By default as the name of the file says.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Else standard output.")] = None,
) -> None:
    """Show what the log shows for each control of a framework.

    Evidenced, configured, not configured, or organisational; nothing is called compliant.

    Example: eab audit report --framework eu-ai-act -o report.html
    """
    session = session_of(context)
    text = mapping_text(framework, mapping)
    if print_mapping:
        echo(text.rstrip("\n"))
        return
    home = session.existing_home()
    if output is not None:
        require_outside_homes(output)
    document = reported(home, mapping_read(text, mapping), since=since, until=until, seed=seed, checkpoint=checkpoint)
    chosen = format_ or _by_name(output) or (Format.JSON if session.json else Format.MARKDOWN)
    if chosen is Format.JSON and output is None:
        print_json(document)
        return
    page = written(document, chosen)
    if output is None:
        sys.stdout.write(page)
        return
    _write(output, page)
    if session.json:
        print_json({"file": str(output), "statuses": document["statuses"]})
    else:
        found = ", ".join(f"{count} {status}" for status, count in document["statuses"].items())
        echo(f"wrote {counted(len(document['controls']), 'control')} to {safe(output)}: {found}")


def written(document: dict[str, Json], form: Format) -> str:
    """A report as the text of a file."""
    import json

    from enhanced_agent_bus.audit import pages

    if form is Format.JSON:
        return json.dumps(document, indent=2) + "\n"
    return pages.html(document) if form is Format.HTML else pages.markdown(document)


def mapping_text(framework: str | None, mapping: Path | None) -> str:
    """The TOML that was named. Raises: CliError."""
    from enhanced_agent_bus.audit.mapping import shipped, shipped_text

    known = ", ".join(shipped())
    if (framework is None) == (mapping is None):
        what = "name a framework or a mapping" + ("" if framework is None else ", not both")
        raise CliError(what, remedy=f"--framework ID with one of {known}, or --mapping FILE")
    if mapping is not None:
        try:
            return mapping.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not UTF-8"
            raise CliError(f"the mapping {mapping} cannot be read: {why}", remedy="name a TOML file") from None
    assert framework is not None
    try:
        return shipped_text(framework)
    except KeyError:
        raise CliError(f"there is no mapping {framework!r}", remedy=f"name one of {known}, or --mapping FILE") from None


def mapping_read(text: str, mapping: Path | None = None) -> Framework:
    """Raises: CliError."""
    from enhanced_agent_bus.audit.mapping import BadMapping, read

    try:
        return read(text)
    except BadMapping as error:
        where = "the mapping" if mapping is None else f"the mapping {mapping}"
        remedy = "mend it; `eab audit report --framework soc2 --print-mapping` shows one"
        raise CliError(f"{where}: {error}", remedy=remedy) from None


def reported(
    home: Path,
    framework: Framework,
    *,
    since: str | None = None,
    until: str | None = None,
    seed: str = SEED,
    checkpoint: Path | None = None,
) -> dict[str, Any]:
    """The report on a home, and what its log and its setup are. Raises: CliError, StoreCorrupt."""
    from enhanced_agent_bus.audit.report import report as made
    from enhanced_agent_bus.cli.audit.verify import verified
    from enhanced_agent_bus.cli.audit.witness import configured_witnesses
    from enhanced_agent_bus.cli.reading.export import exported_rows
    from enhanced_agent_bus.cli.reading.home import status_at_rest

    rows = exported_rows(home, since=since, until=until)
    standing = status_at_rest(home)
    found = verified(home, home / "keys" / "log.vkey", checkpoint, configured_witnesses(home))[0]
    document = made(
        framework,
        ((row.record, row.body) for row in rows),
        setup=setup_of(home, standing),
        verified=found,
        seed=seed,
    )
    return document | {
        "log": _log(found, standing),
        "weakenings": standing["security_state"],
        "constitution": {"digest": standing["constitution"], "revision": standing["revision"]},
    }


def _log(found: Report, standing: dict[str, Json]) -> dict[str, Json]:
    names = ("integrity", "completeness", "time", "size", "root", "checkpoint_size", "unanchored", "cannot_exclude")
    return {"origin": f"{standing['bus']}/{standing['node']}", **{name: getattr(found, name) for name in names}}


def setup_of(home: Path, standing: dict[str, Json]) -> Setup:
    """What a home is set up to do."""
    from enhanced_agent_bus.audit.report import Setup
    from enhanced_agent_bus.authoring.differences import files_of
    from enhanced_agent_bus.cli.reading.home import active_constitution, has_constitution
    from enhanced_agent_bus.settings import load_settings

    words: set[str] = set()
    for name, content in (files_of(active_constitution(home)) if has_constitution(home) else {}).items():
        rule = _RULE_FILE.match(name)
        if rule is not None:
            words |= {rule[1], *(found.decode() for found in _DEFINED.findall(content))}
    given = load_settings(home).model_dump(exclude_unset=True)
    settings = {f"{section}.{key}" for section, keys in given.items() if isinstance(keys, dict) for key in keys}
    return Setup(frozenset(standing["security_state"]), frozenset(words), frozenset(settings))


def _by_name(output: Path | None) -> Format | None:
    suffixes = {".html": Format.HTML, ".htm": Format.HTML, ".json": Format.JSON}
    suffixes |= dict.fromkeys(("", ".md", ".markdown", ".txt"), Format.MARKDOWN)
    if output is None:
        return None
    if output.suffix.lower() not in suffixes:
        remedy = "name a file that ends in .md, .html or .json, or say --format"
        raise CliError(f"{output}: reports are not written as {output.suffix}", remedy=remedy)
    return suffixes[output.suffix.lower()]


def _write(output: Path, page: str) -> None:
    try:
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        remedy = "name a file in a folder that can be written"
        raise CliError(f"{output} cannot be written: {error.strerror}", remedy=remedy, code="file") from None
