"""`eab audit pack`: one zip for an outsider; and what is read back from one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from enhanced_agent_bus.cli.audit.report import SEED, Format, mapping_read, mapping_text, reported, written
from enhanced_agent_bus.cli.faults import FOUND, CliError, unknown_id
from enhanced_agent_bus.cli.render import counted, echo, print_json, safe
from enhanced_agent_bus.cli.session import Json, note_access, require_outside_homes, session_of

if TYPE_CHECKING:
    import zipfile

    from enhanced_agent_bus.audit.pack import Pack
    from enhanced_agent_bus.audit.verify import Note
    from enhanced_agent_bus.authoring.questions import Decision

DRAWN: Final = 25
_DIGEST_CHARS: Final = 64
_FILE_BYTES_MAX: Final = 100_000_000  # of anything but the log that is read back


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(pack)


def pack(
    context: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(metavar="[WORD...]", help="Draw among these decisions.")] = None,
    *,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="ZIP", help="The file to make.")],
    framework: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Put in this report; may be given several times.")
    ] = None,
    mapping: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="And this one, by your mapping.")] = None,
    number: Annotated[int, typer.Option("-n", "--number", metavar="N", min=0, help="How many are drawn.")] = DRAWN,
    seed: Annotated[str, typer.Option(metavar="S", help="Draws them; the same draws the same.")] = SEED,
    payload: Annotated[
        bool, typer.Option("--payload", help="Put in payload and headers of what is drawn; recorded.")
    ] = False,
    checkpoint: Annotated[Path | None, typer.Option(metavar="FILE", help="One that was kept elsewhere.")] = None,
) -> None:
    """Make one zip that an outsider can check.

    All records, the key, a signed checkpoint, the verifier, proofs, constitutions, schemas, what was found, and a page
    that says how to check it in three commands. Of payloads it has none without --payload.

    Example: eab audit pack -o evidence.zip --framework eu-ai-act
    """
    from enhanced_agent_bus.audit.pack import Pack

    session = session_of(context)
    home = session.existing_home()
    frameworks = [mapping_read(mapping_text(name, None)) for name in framework or []]
    frameworks += [mapping_read(mapping_text(None, file), file) for file in mapping or []]
    if not output.parent.is_dir():
        raise CliError(f"there is no folder {output.parent}", remedy="name a file in a folder that is there")
    if output.is_dir():
        raise CliError(f"{output} is a folder", remedy="name a file in it: -o FOLDER/evidence.zip", code="file")
    require_outside_homes(output)
    drawn = _drawn(home, words or [], number, seed)
    if payload:
        note_access(session, "audit pack", " ".join(words or []) or "all")
    note = _signed(home)
    with Pack.create(output) as made:
        told = _log(made, home, note)
        reports = [reported(home, one, seed=seed, checkpoint=checkpoint) for one in frameworks]
        seqs = sorted({*drawn, *_sampled(reports)})
        _proofs(made, home, note, seqs)
        openings = _openings(made, home, drawn) if payload else 0
        _constitutions(made, home, told["constitutions"])
        _reports(made, reports)
        _rest(made, home, note, told, drawn=drawn, seed=seed, words=words or [], checkpoint=checkpoint, shown=openings)
    summary = {"file": str(output), "records": told["records"], "drawn": drawn, "openings": openings}
    if session.json:
        print_json(summary)
    else:
        echo(f"wrote {counted(told['records'], 'record')} to {safe(output)}, with proofs of {len(seqs)}")
        echo("its README.md says how to check it")


# --- what goes in --------------------------------------------------------------------------------------------------


def _drawn(home: Path, words: Sequence[str], number: int, seed: str) -> list[int]:
    """The decisions that are looked at more closely, by seq."""
    from enhanced_agent_bus.audit.sample import draw
    from enhanced_agent_bus.cli.reading.log import Search, query_of

    found = Search(home, query_of(["kind:decision", *words])).oldest()
    return sorted(seq for _, seq in draw((record["seq"] for record in found), seed=seed, number=number))


def _signed(home: Path) -> Note:
    """A checkpoint of all records so far; the record that carries it comes behind them."""
    from enhanced_agent_bus.audit.proofs import newest_note
    from enhanced_agent_bus.cli.audit.prove import at_log
    from enhanced_agent_bus.cli.reading.home import database, one

    with database(home) as connection:
        note = newest_note(connection)
        if note.size + 1 == one(connection, "SELECT max(seq) + 1 FROM records"):
            return note
    at_log(home, "checkpoint")
    with database(home) as connection:
        return newest_note(connection)


def _log(made: Pack, home: Path, note: Note) -> dict[str, Any]:
    """All records up to the one that carries the checkpoint; what they tell by the way."""
    from itertools import islice

    from enhanced_agent_bus.audit.pack import LOG
    from enhanced_agent_bus.audit.sample import Population
    from enhanced_agent_bus.cli.reading.export import exported_rows

    population = Population()
    told: dict[str, Any] = {"records": 0, "first": "", "last": "", "constitutions": set(), "population": population}

    def lines() -> Iterator[bytes]:
        for row in islice(exported_rows(home), note.size + 1):
            record = row.record
            population.add(record)
            told["records"] += 1
            told["first"] = told["first"] or record["at"]
            told["last"] = record["at"]
            if record["kind"] == "decision" and record["constitution"]:
                told["constitutions"].add(record["constitution"])
            yield row.body + b"\n"

    made.stream(LOG, lines())
    return told


def _sampled(reports: Sequence[dict[str, Any]]) -> set[int]:
    """Each record that a report shows gets a proof, and is told where."""
    found = set()
    for one in _samples(reports):
        found.add(one["seq"])
        one["proof"] = f"../proofs/{one['seq']}.tlog-proof"
    return found


def _samples(reports: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for report in reports:
        for control in report["controls"]:
            for evidence in control.get("evidence", []):
                yield from evidence.get("sample", [])


def _proofs(made: Pack, home: Path, note: Note, seqs: Sequence[int]) -> None:
    from enhanced_agent_bus.audit.proofs import inclusion
    from enhanced_agent_bus.cli.reading.home import database

    with database(home) as connection:
        for seq in seqs:
            if seq < note.size:
                made.add(f"proofs/{seq}.tlog-proof", inclusion(connection, seq, note).text)


def _openings(made: Pack, home: Path, seqs: Sequence[int]) -> int:
    """What opens the commitments of decisions, and their input as OPA takes it; how many there are."""
    from enhanced_agent_bus.authoring.questions import Unasked
    from enhanced_agent_bus.cli.reading.recorded import opened

    count = 0
    for seq in seqs:
        opening, decision = opened(home, seq)
        if isinstance(decision, Unasked):
            continue
        count += 1
        made.add(f"openings/{seq}.json", json.dumps(opening.document(), indent=2) + "\n")
        made.add(f"inputs/{seq}.json", decision.question(decision.document) + b"\n")
    return count


def _constitutions(made: Pack, home: Path, digests: set[str]) -> None:
    from enhanced_agent_bus.cli.reading.recorded import kept_constitution

    for digest in sorted(digests):
        path = kept_constitution(home, digest)
        if path is not None:
            made.add(f"constitutions/{digest}.tar.gz", path.read_bytes())


def _reports(made: Pack, reports: Sequence[dict[str, Any]]) -> None:
    for report in reports:
        name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in report["framework"]["id"])
        for form, ending in ((Format.HTML, "html"), (Format.MARKDOWN, "md"), (Format.JSON, "json")):
            made.add(f"reports/{name}.{ending}", written(report, form))


def _rest(
    made: Pack,
    home: Path,
    note: Note,
    told: dict[str, Any],
    *,
    drawn: Sequence[int],
    seed: str,
    words: Sequence[str],
    checkpoint: Path | None,
    shown: int,
) -> None:
    from dataclasses import asdict

    from enhanced_agent_bus import __version__
    from enhanced_agent_bus._share import share_folder
    from enhanced_agent_bus.audit import pack as layout
    from enhanced_agent_bus.audit.sample import METHOD
    from enhanced_agent_bus.cli.audit.verify import verified
    from enhanced_agent_bus.cli.audit.witness import configured_witnesses

    origin = note.text.partition("\n")[0]
    made.add(layout.KEY, (home / "keys" / "log.vkey").read_bytes())
    made.add(layout.CHECKPOINT, note.text)
    made.add(layout.VERIFIER, layout.verifier())
    made.add("schemas/record.json", layout.record_schema())
    made.add("schemas/input.json", (share_folder("schema") / "input.json").read_bytes())
    findings = {
        "origin": origin,
        "made_by": f"opa-agent-bus {__version__}",
        "verified": asdict(verified(home, home / "keys" / "log.vkey", checkpoint, configured_witnesses(home))[0]),
        "population": told["population"].document(),
        "drawn": {"query": " ".join(["kind:decision", *words]), "seed": seed, "method": METHOD, "seqs": list(drawn)},
        "constitutions": sorted(told["constitutions"]),
        "openings": shown,
    }
    made.add(layout.FINDINGS, json.dumps(findings, indent=2) + "\n")
    page = layout.page(origin=origin, size=told["records"], first=told["first"], last=told["last"], payloads=shown)
    made.add(layout.README, page)


# --- what is read back ---------------------------------------------------------------------------------------------


class Unpacked:
    """A pack that is open for reading."""

    def __init__(self, archive: zipfile.ZipFile, path: Path, folder: Path) -> None:
        self._zip = archive
        self._path = path
        self._folder = folder

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[Unpacked]:
        """Raises: CliError, for what is no pack."""
        import zipfile
        from tempfile import TemporaryDirectory

        from enhanced_agent_bus.audit.pack import LOG

        try:
            with zipfile.ZipFile(path) as archive, TemporaryDirectory(prefix="eab-") as folder:
                if LOG not in archive.namelist():
                    raise CliError(f"{path} is a zip, and no pack", remedy="`eab audit pack` makes one", code="file")
                yield cls(archive, path, Path(folder))
        except (OSError, zipfile.BadZipFile) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise CliError(f"{path} cannot be read: {why}", remedy="name a pack", code="file") from None

    def decision(self, name: str) -> Decision:
        """The newest decision on a message, or the one that a decision id or seq names. Raises: CliError."""
        from enhanced_agent_bus.authoring.questions import WHY, Unasked
        from enhanced_agent_bus.cli.reading.recorded import Opening, decision_of

        body = self._record(name)
        seq = json.loads(body)["seq"]
        file = f"openings/{seq}.json"
        there = file in self._zip.namelist()
        opening = Opening.of(json.loads(self._read(file))) if there else Opening()
        found = decision_of(body, opening)
        if not isinstance(found, Unasked):
            return found
        why = WHY[found.why]
        if not there and found.why in ("payload_gone", "texts_gone"):
            why = "this pack has no payload of it; `eab audit pack --payload` puts in those that are drawn"
        raise CliError(f"{name} cannot be asked again: {why}", code=found.why, status=FOUND)

    def constitution(self, digest: str) -> Path | None:
        """The constitution of a digest, in a folder that goes when the pack is closed."""
        name = f"constitutions/{digest}.tar.gz"
        if len(digest) != _DIGEST_CHARS or name not in self._zip.namelist():
            return None
        path = self._folder / f"{digest}.tar.gz"
        path.write_bytes(self._read(name))
        return path

    def _record(self, name: str) -> bytes:
        from enhanced_agent_bus.audit.pack import LOG

        fits = _naming(name)
        newest = None
        with self._zip.open(LOG) as file:
            for line in file:
                body = line.removesuffix(b"\n")
                if b'"kind":"decision"' in body[:80] and fits(json.loads(body)):
                    newest = body
        if newest is None:
            raise unknown_id(f"there is no decision {name!r} in {self._path}", "name a message, a decision or a seq")
        return newest

    def _read(self, name: str) -> bytes:
        if self._zip.getinfo(name).file_size > _FILE_BYTES_MAX:
            raise CliError(f"{name} in {self._path} is too large", remedy="make the pack anew", code="file")
        return self._zip.read(name)


def _naming(name: str) -> Callable[[dict[str, Json]], bool]:
    if name.isdecimal():
        return lambda record: record["seq"] == int(name)
    return lambda record: name in (record["message_id"], record["decision_id"])
