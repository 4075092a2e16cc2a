"""Reading a log as an auditor and an operator do: search, the life of a message, what to sample from, a sample."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from enhanced_agent_bus import Message, Retry
from enhanced_agent_bus.audit.query import FIELDS
from enhanced_agent_bus.cli.app import run_command
from tests.developer import log, small_bus
from tests.support import ADMIT_ALL

# What would drive a terminal, or a reader of lines, if it ever got there as it is.
HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\n\x9b31m\u2028\u202e\x7f"
QUIET = """
# A message that is loud is refused.
admit if not object.get(input.message.payload, "loud", false)

admit if input.message.type == "event"

code := "too_loud"

message := sprintf("it says %v", [input.message.payload.text])
"""


class Ids(NamedTuple):
    """The messages of the home below."""

    asked: str
    refused: str
    broken: str


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ids]:
    """A folder with a home in which a request was answered and led to another message, one was refused, one failed."""
    folder = tmp_path_factory.mktemp("lived")
    return folder, asyncio.run(_live(folder))


async def _live(folder: Path) -> Ids:
    error = type(f"Broken{HOSTILE}", (Exception,), {})

    async def book(message: Message) -> dict[str, Any]:
        await booker.send("hotel", {"nights": 2}, id="room")
        return {"booked": message.payload["trip"]}

    async def fail(_: Message) -> None:
        raise error(HOSTILE)

    async with small_bus(folder, {"everything": ADMIT_ALL, "quiet": QUIET}) as bus:
        desk = await bus.register("desk", tenant="acme")
        booker = await bus.register("booker", handler=book, tenant="acme")
        await bus.register("hotel", handler=lambda _: None, tenant="acme")
        await bus.register("fax", handler=fail, tenant="acme", retry=Retry.immediate(attempts=2))
        reply = await desk.request("booker", {"trip": 7, "text": HOSTILE}, timeout=20)
        refused = await desk.send("booker", {"loud": True, "text": HOSTILE}, id="order-7")
        broken = await desk.send("fax", {"text": HOSTILE})
        assert (await broken.outcome(timeout=20)).state == "dead_lettered"
        assert reply.cause is not None
    return Ids(reply.cause, refused.message_id, broken.message_id)


@pytest.fixture
def home(lived: tuple[Path, Ids], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that home, the one that commands find."""
    shutil.copytree(lived[0] / "home", tmp_path / "home", ignore=shutil.ignore_patterns("control.sock"))
    monkeypatch.setenv("EAB_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def eab_json(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> list[Any]:
    """The documents of one command."""
    found = run_command(["--json", *arguments])
    out, err = capsys.readouterr()
    assert found == status, err
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize(
    "words",
    [
        ["agent:desk verdict:refuse rule:quiet since:24h"],
        ["agent:desk", "-verdict:allow", "kind:decision"],
        ["-verdict:allow agent:des* kind:decision"],
        ["--oldest", "code:too_loud"],
        ["message:desk/order-7"],
        ["id:desk/order* verdict:*", "-n", "1"],
    ],
)
def test_a_query_is_one_argument_or_several(words: list[str], home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A word with a minus in front is no option, and whichever way it is asked, the refused message is found."""
    assert eab_json(capsys, "audit", "search", *words) == log(home, "decision", verdict="refuse")


def test_the_newest_the_oldest_or_only_how_many(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both in the order of the log; the count is of all that match, and says of how many."""
    decisions = log(home, "decision")
    assert len(decisions) > 4
    assert eab_json(capsys, "audit", "search", "kind:decision", "-n", "2") == decisions[-2:]
    assert eab_json(capsys, "audit", "search", "kind:decision", "-n", "2", "--oldest") == decisions[:2]
    [counted] = eab_json(capsys, "audit", "search", "kind:decision", "--count")
    assert counted == {"query": "kind:decision", "size": len(log(home)), "count": len(decisions)}
    assert eab_json(capsys, "audit", "search", f"seq:>={decisions[1]['seq']} kind:decision") == decisions[1:]
    half = decisions[2]["at"]
    before = [record for record in decisions if record["at"] < half]
    assert eab_json(capsys, "audit", "search", "kind:decision", f"until:{half}") == before
    assert eab_json(capsys, "audit", "search", "kind:decision", f"since:{half}") == decisions[len(before) :]


def test_an_unknown_field_is_wrong_usage(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Never an empty list for a slip of the pen: exit 2, the nearest field, and how to look for the words."""
    assert home.is_dir()
    assert run_command(["audit", "search", "verdit:refuse"]) == 2
    err = capsys.readouterr().err
    assert "the nearest is 'verdict'" in err
    assert '"verdit:refuse"' in err


@pytest.mark.parametrize(
    "words",
    [
        ["search", "--since", "2026-03-05", "--until", "2026-03-04"],
        ["search", "since:1h until:24h"],
        ["search", "until:2026-03-04", "--since", "2026-03-04", "--count"],
        ["population", "since:1h until:24h"],
        ["sample", "since:1h until:24h", "--seed", "s"],
        ["export", "--since", "1h", "--until", "24h", "-o", "part.jsonl"],
        ["report", "--framework", "soc2", "--since", "1h", "--until", "24h"],
        ["pack", "since:1h until:24h", "-o", "pack.zip"],
    ],
)
def test_a_time_that_is_none_is_wrong_usage(
    words: list[str], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What begins after it ends is no empty answer with status 0, in any command that takes both."""
    monkeypatch.chdir(tmp_path)
    assert home.is_dir()
    assert run_command(["audit", *words]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("eab: no record is both since 2026-")
    assert {path.name for path in tmp_path.iterdir()} == {"home"}


def test_every_field_of_a_record_can_be_asked_for(home: Path) -> None:
    """A record has no field that a query takes for a slip."""
    assert {name for record in log(home) for name in record} <= FIELDS


def test_the_life_of_a_request(lived: tuple[Path, Ids], home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Decided, delivered, and what came of it: the message that its handler sent, and the answer."""
    [life] = eab_json(capsys, "audit", "show", lived[1].asked, "--timeline")
    assert (life["sender"], life["recipient"], life["state"], life["attempts"]) == ("desk", "booker", "delivered", 1)
    assert [(step["what"], step.get("verdict") or step.get("state")) for step in life["steps"]] == [
        ("decision", "allow"),
        ("outcome", "delivered"),
    ]
    assert [step["seq"] for step in life["steps"]] == [r["seq"] for r in log(home, message_id=lived[1].asked)]
    assert [(other["sender"], other["recipient"], other["answer"]) for other in life["caused"]] == [
        ("booker", "hotel", False),
        ("booker", "desk", True),
    ]
    [room] = eab_json(capsys, "audit", "show", "booker/room", "--timeline")
    assert [cause["message_id"] for cause in room["caused_by"]] == [lived[1].asked]
    assert run_command(["audit", "show", lived[1].asked]) == 0
    out = capsys.readouterr().out
    assert "allow: booker to hotel, command booker/room" in out
    assert "the answer" in out


def test_a_refusal_names_the_line_that_refused(
    lived: tuple[Path, Ids], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the constitution that decided, as the home keeps it: where each way to admit begins."""
    [life] = eab_json(capsys, "audit", "show", lived[1].refused, "--timeline")
    [step] = life["steps"]
    [reason] = step["reasons"]
    text = (lived[0] / "policies" / reason["file"]).read_text().splitlines()
    wanted = [number for number, line in enumerate(text, 1) if line.startswith("admit")]
    assert (reason["rule"], reason["code"], reason["lines"], reason["line"]) == ("quiet", "too_loud", wanted, wanted[0])
    assert run_command(["audit", "show", lived[1].refused]) == 0
    out = capsys.readouterr().out
    assert f"rule quiet: too_loud, bus/rules/quiet/quiet.rego:{','.join(map(str, wanted))}" in out
    assert "policy explain" in out
    # Other bytes under the name of that digest are not what decided.
    [known] = life["constitutions"]
    assert known["kept"]
    kept = home / "constitutions" / f"{step['constitution']}.tar.gz"
    shutil.copy(kept, kept.with_suffix(".old"))
    subprocess.run(["tar", "-czf", kept, "-C", lived[0] / "policies", "bus"], check=True)
    [life] = eab_json(capsys, "audit", "show", lived[1].refused, "--timeline")
    assert "file" not in life["steps"][0]["reasons"][0]
    assert life["constitutions"][0]["kept"] is False


def test_the_runs_of_a_message_that_failed(
    lived: tuple[Path, Ids], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each with its own decision before it, how long it took, and the type of its error."""
    assert home.is_dir()
    [life] = eab_json(capsys, "audit", "show", lived[1].broken, "--timeline")
    said = [(step["what"], step.get("why") or step["state"], step["attempt"]) for step in life["steps"]]
    assert said == [
        ("decision", "send", 1),
        ("outcome", "failed", 1),
        ("decision", "retry", 2),
        ("outcome", "dead_lettered", 2),
    ]
    assert {step["error"]["type"][:6] for step in life["steps"] if step["what"] == "outcome"} == {"Broken"}
    assert all(step["after_us"] >= 0 for step in life["steps"])


def test_json_without_a_timeline_is_the_records(
    lived: tuple[Path, Ids], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As they are stored, by message, decision and seq; a seq that is asked for its timeline gives its message's."""
    records = log(home, message_id=lived[1].broken)
    assert eab_json(capsys, "audit", "show", lived[1].broken) == records
    assert eab_json(capsys, "audit", "show", str(records[1]["seq"])) == [records[1]]
    [by_seq] = eab_json(capsys, "audit", "show", str(records[1]["seq"]), "--timeline")
    assert by_seq["message_id"] == lived[1].broken
    for unknown in ("nobody/knows", "9" * 30, "desk/order-7#0"):
        eab_json(capsys, "audit", "show", unknown, status=1)


def test_nothing_in_a_log_can_drive_a_terminal(
    lived: tuple[Path, Ids], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Payloads, texts of reasons and errors, names of errors: escapes, line breaks and bells are shown as text."""
    assert home.is_dir()
    for words in (
        ["tail", "-n", "1000"],
        ["search", "error:*"],
        ["search", f"error:{HOSTILE.split(chr(13), maxsplit=1)[0]}*"],
        ["show", lived[1].refused, "--payload"],
        ["show", lived[1].broken, "--payload"],
        ["show", lived[1].broken, "--payload", "--records"],
        ["show", f"{HOSTILE}"],
        ["search", f"{HOSTILE}:x"],
        ["search", f'since:"{HOSTILE}"'],
        ["population", f'-"{HOSTILE}"'],
        ["sample", "--n", "3", "--seed", HOSTILE],
    ):
        run_command(["audit", *words])
        shown = "".join(capsys.readouterr())
        assert shown
        assert all(character == "\n" or character.isprintable() for character in shown), (words, shown)
        assert "owned" in shown or words[0] in ("tail", "search", "sample"), words


def test_a_sample_can_be_drawn_again(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand too; and with the size of the log as it was, however much has been recorded since."""
    wanted = ["audit", "sample", "kind:decision", "--n", "3", "--seed", "2026-Q4"]
    [drawn] = eab_json(capsys, *wanted)
    seqs = [record["seq"] for record in log(home, "decision")]
    lots = sorted((hashlib.sha256(f"2026-Q4:{seq}".encode()).hexdigest(), seq) for seq in seqs)
    assert [(row["lot"], row["seq"]) for row in drawn["sample"]] == lots[:3]
    assert (drawn["population"], drawn["size"]) == (len(seqs), len(log(home)))
    assert run_command(["facts", "put", "tenant", "acme", "limit", "5"]) == 0
    capsys.readouterr()
    assert eab_json(capsys, *wanted, "--size", str(drawn["size"])) == [drawn]
    [population] = eab_json(capsys, "audit", "population", "kind:decision")
    assert population["population"] == len(seqs)
    assert population["verdict"] == {"allow": len(seqs) - 1, "refuse": 1}
    assert population["rule"] == {"quiet": 1}
    assert population["silent_rules"] == ["everything"]
    assert sum(population["pair"].values()) == len(seqs)
    eab_json(capsys, *wanted, "--size", "99999", status=2)


def test_following_goes_on_while_buses_come_and_go(lived: tuple[Path, Ids], tmp_path: Path) -> None:
    """A home that nobody has open, then one bus and another: every record once, in order; and it ends when told to."""
    shutil.copytree(lived[0] / "home", tmp_path / "home", ignore=shutil.ignore_patterns("control.sock"))
    shutil.copytree(lived[0] / "policies", tmp_path / "policies")
    command = [sys.executable, "-m", "enhanced_agent_bus", "--home", str(tmp_path / "home"), "--json", "audit", "tail"]
    process = subprocess.Popen(
        [*command, "-n", "1", "--follow"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        seqs = [json.loads(process.stdout.readline())["seq"]]
        for turn in range(2):
            asyncio.run(_send(tmp_path, f"turn-{turn}"))
            while seqs[-1] < len(log(tmp_path / "home")) - 1:
                seqs.append(json.loads(process.stdout.readline())["seq"])
        assert seqs == list(range(seqs[0], len(log(tmp_path / "home"))))
    finally:
        process.terminate()
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (-15, "")


async def _send(folder: Path, name: str) -> None:
    async with small_bus(folder) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("hotel", handler=lambda _: None, tenant="acme")
        assert (await desk.send("hotel", {}, id=name)).ok
