"""Reports and packs: what a compliance team reads, and what an outsider checks without us."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from enhanced_agent_bus.audit.mapping import shipped
from enhanced_agent_bus.cli.app import run_command
from tests.developer import log
from tests.newcomer import newcomer, work_in_copy

ROOT = Path(__file__).resolve().parents[2]
MARK = "<script>alert(1)</script>"


def eab(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    """What one command prints."""
    found = run_command(list(arguments))
    out, err = capsys.readouterr()
    assert found == status, err
    return out if status == 0 else err


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the travel desk had its day."""
    folder = tmp_path_factory.mktemp("begun")
    with newcomer(folder):
        with Path("messages.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"from": "desk", "to": "nobody", "payload": {"note": MARK}}) + "\n")
        assert run_command(["run", "app.py:build", "--input", "messages.jsonl"]) == 0
    return folder


@pytest.fixture
def home(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in use."""
    work_in_copy(begun, tmp_path, monkeypatch)
    return tmp_path / ".eab"


# --- reports ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", shipped())
def test_each_framework_is_reported_on(home: Path, capsys: pytest.CaptureFixture[str], framework: str) -> None:
    """Each control has one of four words; what is evidenced has records that are there, and that its query finds."""
    document = json.loads(eab(capsys, "--json", "audit", "report", "--framework", framework))
    seqs = {record["seq"]: record for record in log(home)}
    assert sum(document["statuses"].values()) == len(document["controls"])
    assert document["statuses"]["evidenced"]
    for control in document["controls"]:
        assert control["status"] in document["statuses"]
        for evidence in control.get("evidence", []):
            assert (evidence.get("count", 0) > 0) <= (evidence["status"] == "evidenced")
            for one in evidence.get("sample", []):
                assert seqs[one["seq"]]["kind"] == one["kind"]
    assert not list(log(home, "access")), "a report shows no payloads"


def test_every_weakening_of_the_period_is_reported(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A clock that was fixed while messages were decided is named, though the newest start had none."""
    eab(capsys, "run", "app.py:build", "--input", "messages.jsonl", "--at", "2026-03-04T10:30:00Z")
    eab(capsys, "audit", "hold", "add", "--agent", "booker", "--reason", "case 1")
    document = json.loads(eab(capsys, "--json", "audit", "report", "--framework", "soc2"))
    starts = [record for record in log(home) if record["kind"] == "opened"]
    assert "fixed_clock" not in document["weakenings"]
    assert document["starts"] == len(starts)
    assert document["weakenings_of_starts"]["fixed_clock"] == 1
    assert document["weakenings_of_starts"]["no_witness"] == len(starts)
    assert f"fixed_clock (1 of {len(starts)} starts)" in eab(
        capsys, "audit", "report", "--framework", "soc2", "--format", "html"
    )


def test_what_is_lacking_is_told_in_words(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The conditions of a mapping are for machines."""
    assert home.is_dir()
    page = eab(capsys, "audit", "report", "--framework", "soc2", "--format", "html")
    assert "without:" not in page
    assert "the weakening constitution_folder is in force" in page


@pytest.mark.usefixtures("home")
def test_a_report_as_pages(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Markdown and HTML, by the name of the file; the same seed gives the same bytes."""
    pages = {}
    for name in ("report.html", "report.md", "again.html"):
        eab(capsys, "audit", "report", "--framework", "soc2", "-o", name)
        pages[name] = (tmp_path / name).read_text()
    assert pages["report.html"] == pages["again.html"]
    assert pages["report.html"].startswith("<!doctype html>")
    assert "://" not in pages["report.html"].replace("https://www.aicpa-cima.com", ""), "nothing is fetched"
    for page in pages.values():
        assert "CC7.2" in page
        assert "evidenced" in page
        assert "compliant" not in page


@pytest.mark.usefixtures("home")
def test_what_a_mapping_says_is_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Markup in somebody's mapping stays text on both pages."""
    text = eab(capsys, "audit", "report", "--framework", "soc2", "--print-mapping")
    (tmp_path / "ours.toml").write_text(text.replace("CC1.1", MARK))
    eab(capsys, "audit", "report", "--mapping", "ours.toml", "-o", "report.html")
    assert MARK not in (tmp_path / "report.html").read_text()
    assert "\\<script\\>" in eab(capsys, "audit", "report", "--mapping", "ours.toml")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--framework ID with one of"),
        (["--framework", "soc3"], "soc2"),
        (["--framework", "soc2", "--mapping", "x.toml"], "not both"),
        (["--framework", "soc2", "-o", "report.pdf"], "report.pdf"),
        (["--mapping", "x.toml"], "x.toml cannot be read"),
        (["--framework", "soc2", "--since", "soon"], "'soon' is no time"),
        (["--framework", "soc2", "-o", "nowhere/report.html"], "cannot be written"),
    ],
)
@pytest.mark.usefixtures("home")
def test_wrong_usage_of_reports(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    """One sentence with what to do, and status 2."""
    assert said in eab(capsys, "audit", "report", *arguments, status=2)


# --- packs -----------------------------------------------------------------------------------------------------------


def typed(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """What an outsider types, who has Python and not the package."""
    path = {"PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=folder, env=path, capture_output=True, text=True, check=False)


def unpacked(pack: Path, folder: Path) -> Path:
    """The files of a pack."""
    with zipfile.ZipFile(pack) as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.usefixtures("home")
def test_an_outsider_checks_a_pack_with_python_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The commands of its page, without the package: every sum, the log, and the checkpoint that was kept before."""
    kept = tmp_path / "kept.txt"
    kept.write_text(eab(capsys, "audit", "checkpoint"))
    eab(capsys, "audit", "pack", "-o", "evidence.zip", "--framework", "eu-ai-act")
    outside = unpacked(tmp_path / "evidence.zip", tmp_path / "outside")
    summed = typed(outside, "sha256sum", "--check", "--strict", "SHA256SUMS")
    assert summed.returncode == 0, summed.stderr
    files = {str(file.relative_to(outside)) for file in outside.rglob("*") if file.is_file()}
    assert {line.split(": ")[0] for line in summed.stdout.splitlines()} == files - {"SHA256SUMS"}
    verify = [sys.executable, "-I", "verify.py", "log.jsonl", "--key", "log.vkey", "--checkpoint"]
    assert typed(outside, *verify, "checkpoint", "--require-anchor").returncode == 0
    assert typed(outside, *verify, str(kept)).returncode == 0
    for line in (outside / "README.md").read_text().splitlines():
        if line.startswith("python3 "):
            assert line.split()[2] == "verify.py"

    lines = (outside / "log.jsonl").read_bytes().splitlines(keepends=True)
    (outside / "log.jsonl").write_bytes(b"".join([*lines[:9], *lines[10:]]))
    assert typed(outside, "sha256sum", "--check", "--quiet", "SHA256SUMS").returncode == 1
    assert typed(outside, *verify, "checkpoint").returncode == 1


def test_a_pack_holds_no_payload_unless_asked(home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Asked for, it holds those of what is drawn, and the access is on record before."""
    eab(capsys, "audit", "pack", "-o", "plain.zip", "-n", "100")
    plain = unpacked(tmp_path / "plain.zip", tmp_path / "plain")
    assert not list(plain.glob("openings/*"))
    assert not list(log(home, "access"))
    eab(capsys, "audit", "pack", "-o", "whole.zip", "-n", "100", "--payload")
    whole = unpacked(tmp_path / "whole.zip", tmp_path / "whole")
    [access] = log(home, "access")
    assert access["command"] == "audit pack"
    found = json.loads((whole / "findings.json").read_text())
    shown = {int(file.stem) for file in whole.glob("openings/*.json")}
    assert len(shown) == found["openings"] > 5
    assert shown <= set(found["drawn"]["seqs"])
    assert {file.stem for file in whole.glob("inputs/*.json")} == {str(seq) for seq in shown}
    for seq in found["drawn"]["seqs"]:
        assert (whole / "proofs" / f"{seq}.tlog-proof").read_text().startswith("c2sp.org/tlog-proof@v1\n")


@pytest.mark.usefixtures("home")
def test_what_is_drawn_is_drawn_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The same seed draws the same decisions as `audit sample` does, out of the same log."""
    eab(capsys, "audit", "pack", "verdict:refuse", "-n", "2", "--seed", "s", "-o", "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        drawn = json.loads(archive.read("findings.json"))["drawn"]["seqs"]
    out = eab(capsys, "--json", "audit", "sample", "--n", "2", "--seed", "s", "kind:decision", "verdict:refuse")
    assert sorted(drawn) == sorted(_seqs(out))


def _seqs(out: str) -> list[int]:
    found: list[Any] = [json.loads(line) for line in out.splitlines()]
    records = found[0]["sample"] if len(found) == 1 and "sample" in found[0] else found
    return [int(record["seq"]) for record in records]


@pytest.mark.usefixtures("home")
def test_every_record_fits_the_schema_that_is_packed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The schema of records takes all of the log, and not a record that lacks what its kind promises."""
    eab(capsys, "audit", "pack", "-o", "evidence.zip", "-n", "0")
    outside = unpacked(tmp_path / "evidence.zip", tmp_path / "outside")
    schema = jsonschema.Draft202012Validator(json.loads((outside / "schemas" / "record.json").read_text()))
    records = [json.loads(line) for line in (outside / "log.jsonl").read_bytes().splitlines()]
    for record in records:
        schema.validate(record)
    decision = next(record for record in records if record["kind"] == "decision")
    for name in ("constitution", "verdict", "digest"):
        assert not schema.is_valid({key: value for key, value in decision.items() if key != name})
    assert json.loads((outside / "schemas" / "input.json").read_text())["properties"]


def test_packed_decisions_are_asked_again(
    home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, opa_binary: Path
) -> None:
    """By us, and by stock OPA out of the constitution and the input that the pack holds."""
    eab(capsys, "audit", "pack", "code:policy_denied", "-n", "2", "--payload", "-o", "denied.zip")
    outside = unpacked(tmp_path / "denied.zip", tmp_path / "outside")
    shutil.rmtree(home)
    drawn = json.loads((outside / "findings.json").read_text())["drawn"]["seqs"]
    assert len(drawn) == 2
    for seq in drawn:
        document = json.loads(eab(capsys, "--json", "audit", "reproduce", str(seq), "--pack", "denied.zip"))
        assert document["reproduced"] is True
        assert document["verdict"] == "refuse"
        asked = subprocess.run(
            [
                *(opa_binary, "eval", "--strict-builtin-errors", "--format", "raw", "-b"),
                *(outside / "constitutions" / f"{document['constitution']}.tar.gz", "-i"),
                *(outside / "inputs" / f"{seq}.json", "data.bus.decision"),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        answer = json.loads(asked.stdout)
        assert answer["allow"] is False
        assert {reason["rule"] for reason in answer["reasons"]} == {reason["rule"] for reason in document["reasons"]}


def test_what_cannot_be_asked_again_says_why(home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Not in the pack, never asked of the policy, erased, changed: status 1 and the reason."""
    eab(capsys, "audit", "pack", "-o", "plain.zip")
    [denied, *_] = log(home, "decision", code="policy_denied")
    reproduce = ("audit", "reproduce", denied["decision_id"])
    assert "has no payload of it" in eab(capsys, *reproduce, "--pack", "plain.zip", status=1)
    [unknown, *_] = log(home, "decision", code="recipient_unknown")
    assert "before the policy was asked" in eab(capsys, "audit", "reproduce", unknown["message_id"], status=1)
    assert "no decision" in eab(capsys, "audit", "reproduce", "desk/nothing", status=1)
    assert "no decision" in eab(capsys, "audit", "reproduce", "desk/nothing", "--pack", "plain.zip", status=1)
    assert "cannot be read" in eab(capsys, "audit", "reproduce", "x", "--pack", "nothing.zip", status=2)
    (tmp_path / "no.zip").write_bytes(b"PK")
    assert "cannot be read" in eab(capsys, "audit", "reproduce", "x", "--pack", "no.zip", status=2)


@pytest.mark.usefixtures("home")
def test_an_opening_that_was_changed_is_found(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The payload, the reasons or the headers of a pack are not believed, but held against the record."""
    eab(capsys, "audit", "pack", "code:policy_denied", "-n", "1", "--payload", "-o", "one.zip")
    [seq] = json.loads(zipfile.ZipFile(tmp_path / "one.zip").read("findings.json"))["drawn"]["seqs"]
    for name in ("payload", "texts"):
        with zipfile.ZipFile(tmp_path / "one.zip") as old, zipfile.ZipFile(tmp_path / "two.zip", "w") as new:
            for file in old.namelist():
                data = old.read(file)
                if file.startswith("openings/"):
                    opening = json.loads(data)
                    opening[name] = opening[name].replace('":', '" :', 1)
                    data = json.dumps(opening).encode()
                new.writestr(file, data)
        assert "not th" in eab(capsys, "audit", "reproduce", str(seq), "--pack", "two.zip", status=1)


def test_a_decision_that_is_answered_otherwise_is_found(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A constitution that is not the one of its name cannot be used in its place."""
    [denied, *_] = log(home, "decision", code="policy_denied")
    [kept] = (home / "constitutions").iterdir()
    kept.write_bytes(b"no bundle")
    said = eab(capsys, "audit", "reproduce", denied["decision_id"], status=1)
    assert "cannot be used" in said
