"""The logs of several nodes held against each other: honest ones fit together, and each kind of lie is named."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from enhanced_agent_bus import NotDelivered, Retry
from enhanced_agent_bus.audit import joined as alone
from enhanced_agent_bus.cli.app import run_command as main
from enhanced_agent_bus.ledger.checkpoint import Checkpoint, Signer
from enhanced_agent_bus.ledger.merkle import grow, root_hash
from tests.acceptance.test_nodes import Quiet, nodes, seen
from tests.developer import Doorman, Inbox, log, until

Record = dict[str, Any]


async def traffic(folder: Path, where: dict[str, Any]) -> None:
    """Three nodes: what is delivered, answered, refused, dead, replayed on either side, parked, left open and away."""
    other = folder / "other"
    other.mkdir()
    audit = {"checkpoint_seconds": 0.05}
    async with nodes(folder, where, "a", audit=audit) as (a,):
        desk = await a.register("desk", tenant="acme")
        async with (
            nodes(other, where, "b", gates=[Quiet()], delivery={"drain_seconds": 0.01}, audit=audit) as (b,),
            nodes(folder, where, "c", audit=audit) as (c,),
        ):
            door = Doorman()
            bad = ValueError("no")
            await b.register("booker", Inbox({"booked": 7}, None, bad, None, bad, None), tenant="acme", retry=ONCE)
            await b.register("slow", door, tenant="acme")
            await b.register("careful", Inbox(bad), tenant="acme", retry=Retry.manual())
            clerk = await c.register("clerk", Inbox(), tenant="acme")
            await seen(a, "booker", "slow", "careful", "clerk")
            await desk.request("booker", {"trip": 1}, timeout=10)
            assert (await (await desk.send("clerk", id="plain")).outcome(timeout=10)).state == "delivered"
            assert (await (await desk.send("booker", {"loud": True}, id="loud")).outcome(timeout=10)).state == "refused"
            with pytest.raises(NotDelivered):
                await desk.request("booker", {"loud": True}, timeout=10)
            assert (await (await clerk.send("booker", id="from-c")).outcome(timeout=10)).state == "delivered"
            for name, replayer in (("again-a", a), ("again-b", b)):
                dead = await desk.send("booker", id=name)
                assert (await dead.outcome(timeout=10)).state == "dead_lettered"
                assert (await replayer.replay(f"desk/{name}")).ok
                await until(lambda: not a.status().accounting["dead_lettered"])
            await desk.send("slow", id="open")
            await desk.send("careful", id="parked")
            await until(lambda: door.got and b.status().accounting["parked"])
            await until(
                lambda: witnessed(folder / "c", folder / "a") > witnessed(folder / "c", folder / "a", first=True)
            )
        assert (await desk.send("slow", id="away")).ok


def witnessed(home: Path, other: Path, *, first: bool = False) -> int:
    """How many records of another log the newest checkpoint vouches for that a home has on record; or the first."""
    origin = "{bus}/{node}".format(**log(other)[0])
    sizes = [record["size"] for record in log(home, "witness", event="witnessed", origin=origin)]
    return min(sizes, default=0) if first else max(sizes, default=0)


ONCE = Retry.immediate(1)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three homes that have talked, and were closed."""
    folder = tmp_path_factory.mktemp("joined")
    asyncio.run(traffic(folder, {"url": f"memory://{folder.name}"}))
    shutil.move(folder / "other" / "b", folder / "b")
    return folder


class Exports:
    """Exports of three homes, whose records a test may change before they are written and signed anew."""

    def __init__(self, begun: Path, folder: Path) -> None:
        self._begun, self._folder = begun, folder
        self.logs = {name: log(begun / name) for name in "abc"}

    def one(self, name: str, kind: str, **fields: object) -> Record:
        """The first record of a log with these values."""
        said = {"kind": kind, **fields}
        return next(one for one in self.logs[name] if all(one.get(key) == value for key, value in said.items()))

    def origin(self, name: str) -> str:
        return f"{self.logs[name][0]['bus']}/{self.logs[name][0]['node']}"

    def write(self, *names: str) -> list[str]:
        """The arguments of `eab audit verify --all` that name these logs and their keys."""
        arguments = []
        for name in names:
            file = self._folder / f"{name}.jsonl"
            file.write_bytes(b"".join(line + b"\n" for line in self._signed(name)))
            arguments += [str(file), "--key", str(self._begun / name / "keys" / "log.vkey")]
        return arguments

    def _signed(self, name: str) -> list[bytes]:
        """As the node itself would have written it: with roots and signatures of what stands there now."""
        key = load_pem_private_key((self._begun / name / "keys" / "log.key").read_bytes(), password=None)
        assert isinstance(key, Ed25519PrivateKey)
        signer, frontier, lines = Signer(self.origin(name), key), list[bytes](), list[bytes]()
        for seq, record in enumerate(self.logs[name]):
            root = root_hash(frontier)
            if record["kind"] == "checkpoint" and record["root"] != root.hex():
                record["root"], record["note"] = root.hex(), signer.sign(Checkpoint(signer.name, seq, root))
            lines.append(json.dumps(record, separators=(",", ":")).encode())
            grow(frontier, seq, sha256(b"\0" + lines[-1]).digest())
        return lines


@pytest.fixture
def exports(begun: Path, tmp_path: Path) -> Exports:
    """Those of the three homes."""
    return Exports(begun, tmp_path)


def verify(capsys: pytest.CaptureFixture[str], *arguments: str, status: int | None) -> dict[str, Any]:
    """What `eab --json audit verify --all` says; None: whether the others have witnessed what changed is not sure."""
    capsys.readouterr()
    assert main(["--json", "audit", "verify", "--all", *arguments]) in ((0, 1) if status is None else (status,))
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return said


def test_honest_logs_fit_together(begun: Path, exports: Exports, capsys: pytest.CaptureFixture[str]) -> None:
    """Homes and exports alike: every message is accounted for on both sides, and what is open is listed as open."""
    said = verify(capsys, *(str(begun / name) for name in "abc"), status=0)
    assert {one["integrity"] for one in said["logs"].values()} == {"ok"}
    joined = said["joined"]
    assert (joined["ok"], joined["found"], joined["missing"], joined["twice"], joined["crossed"]) == (
        True,
        [],
        [],
        0,
        0,
    )
    assert joined["received"] >= 6
    waits = [("open", "desk/open"), ("open", "desk/parked"), ("on_its_way", "desk/away")]
    assert [(one["what"], one["message"]) for one in joined["listed"]] == waits
    sent = [exports.one("a", "decision", message_id=message) for _, message in waits]
    named = [(one["seq"], one["decision"], one["origin"]) for one in joined["listed"]]
    assert named == [(one["seq"], one["decision_id"], exports.origin("a")) for one in sent]
    assert verify(capsys, *exports.write(*"abc"), status=0)["joined"] == joined
    assert main(["audit", "verify", "--all", *exports.write(*"abc")]) == 0
    told = capsys.readouterr().out
    assert f"open: desk/open (decision {sent[0]['decision_id']}, {exports.origin('a')} seq " in told
    assert told.count("integrity") == 3


def invented(exports: Exports) -> None:
    """An allow where the other log has none."""
    exports.one("c", "decision", message_id="desk/plain")["ticket"]["seq"] = 0


def foreign(exports: Exports) -> None:
    """The allow of another message."""
    ticket = exports.one("c", "decision", message_id="desk/plain")["ticket"]
    ticket["seq"] = exports.one("a", "decision", message_id="desk/loud")["seq"]


def no_ticket(exports: Exports) -> None:
    """No allow at all."""
    del exports.one("c", "decision", message_id="desk/plain")["ticket"]


def other_digest(exports: Exports) -> None:
    """Other bytes than were allowed."""
    exports.one("c", "decision", message_id="desk/plain")["digest"] = "0" * 64


def other_decision(exports: Exports) -> None:
    """Another decision than that record is."""
    exports.one("c", "decision", message_id="desk/plain")["ticket"]["decision_id"] = "desk/plain#00000000"


def other_constitution(exports: Exports) -> None:
    """A constitution that did not decide there."""
    exports.one("c", "decision", message_id="desk/plain")["ticket"]["constitution"] = "0" * 64


def a_refusal(exports: Exports) -> None:
    """The sender had been told no."""
    exports.one("a", "decision", message_id="desk/plain")["verdict"] = "refuse"
    exports.logs["a"] = [one for one in exports.logs["a"] if not _ends(one, "desk/plain")]
    _number(exports, "a")


def other_end(exports: Exports) -> None:
    """Another end than the receiver recorded."""
    exports.one("a", "outcome", message_id="desk/plain")["state"] = "dead_lettered"


def other_code(exports: Exports) -> None:
    """Another reason."""
    exports.one("a", "outcome", message_id="desk/loud")["code"] = "expired"


def no_end(exports: Exports) -> None:
    """An end that the receiver knows nothing of."""
    exports.one("c", "outcome", message_id="desk/plain")["message_id"] = "desk/another"


def refused_after_all(exports: Exports) -> None:
    """A later no of the sender, though the receiver delivered."""
    end = exports.one("a", "outcome", message_id="desk/plain")
    del end["by"]
    end |= {"state": "refused", "code": "policy_denied"}


def away_too_long(exports: Exports) -> None:
    """It was let go, its time is over, and no node has ever seen it."""
    exports.one("a", "decision", message_id="desk/away")["expires_us"] = 0


def open_too_long(exports: Exports) -> None:
    """The other node took it in, its time is over, and nobody says how it ended."""
    exports.one("a", "decision", message_id="desk/open")["expires_us"] = 0


def _ends(record: Record, message_id: str) -> bool:
    return bool(record["kind"] == "outcome" and record["message_id"] == message_id)


def _number(exports: Exports, name: str) -> None:
    """Numbers what is left anew, checkpoints too; others name the old numbers, as far as those come later."""
    for seq, record in enumerate(exports.logs[name]):
        record["seq"] = seq
        if record["kind"] == "checkpoint":
            record["size"] = seq


@pytest.mark.parametrize(
    ("lie", "what", "message", "other"),
    [
        (invented, "not_admitted", "desk/plain", "a"),
        (foreign, "other_message", "desk/plain", "a"),
        (no_ticket, "not_admitted", "desk/plain", None),
        (other_digest, "other_digest", "desk/plain", "a"),
        (a_refusal, "not_allowed", "desk/plain", "a"),
        (other_decision, "other_decision", "desk/plain", "a"),
        (other_constitution, "other_constitution", "desk/plain", "a"),
        (other_end, "other_end", "desk/plain", "c"),
        (other_code, "other_end", "desk/loud", "b"),
        (no_end, "no_end", "desk/plain", "c"),
        (refused_after_all, "refused_and_delivered", "desk/plain", "c"),
        (away_too_long, "never_arrived", "desk/away", None),
        (open_too_long, "never_ended", "desk/open", "b"),
    ],
)
def test_a_lie_is_named_with_both_places(
    lie: Callable[[Exports], None],
    what: str,
    message: str,
    other: str | None,
    exports: Exports,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A log that is consistent in itself and signed by its own key cannot say of another what that one does not."""
    lie(exports)
    said = verify(capsys, *exports.write(*"abc"), status=1)
    assert {one["integrity"] for one in said["logs"].values()} == {"ok"}
    found = said["joined"]["found"]
    [one] = [one for one in found if one["what"] == what and one["message"] == message]
    assert one["seq"] is not None
    assert one["other"] == (None if other is None else exports.origin(other))
    assert one["other_seq"] is not None or other is None
    assert one["why"]


@pytest.mark.parametrize(
    ("message", "gone", "what"),
    [
        ("desk/plain", [("a", "outcome", -1)], "notice_under_way"),
        ("desk/plain", [("a", "outcome", -1), ("c", "outcome", -1)], "open"),
        ("desk/plain", [("a", "outcome", -1), ("c", "outcome", -1), ("c", "decision", -1)], "on_its_way"),
        ("desk/loud", [("a", "outcome", -1)], "notice_under_way"),
        ("desk/again-a", [("a", "outcome", -1)], "notice_under_way"),
        ("desk/again-a", [("a", "outcome", -1), ("b", "outcome", -1), ("b", "decision", -1)], "on_its_way"),
    ],
)
def test_what_has_no_end_yet_is_where_its_newest_record_says(
    message: str,
    gone: list[tuple[str, str, int]],
    what: str,
    exports: Exports,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ended and not heard of, arrived, or not arrived; a dead letter that was sent again is none of the first."""
    for name, kind, nth in gone:
        records = [one for one in exports.logs[name] if one["kind"] == kind and one["message_id"] == message]
        records[nth]["message_id"] = "desk/another"
    said = verify(capsys, *exports.write(*"abc"), status=None)["joined"]
    assert [one["what"] for one in said["listed"] if one["message"] == message] == [what]
    assert not [one for one in said["found"] if one["message"] == message]
    for sent in exports.logs["a"]:
        if sent["kind"] == "decision" and sent["message_id"] == message:
            sent["expires_us"], sent["created_us"] = 0, 0 if sent["why"] == "send" else 10**17
    over = verify(capsys, *exports.write(*"abc"), status=None)["joined"]
    lost = {"open": ["never_ended"], "on_its_way": ["never_arrived"], "notice_under_way": []}[what]
    assert [one["what"] for one in over["found"] if one["message"] == message] == lost


def test_what_is_parked_for_somebody_is_no_loss(exports: Exports, capsys: pytest.CaptureFixture[str]) -> None:
    """However long it waits."""
    exports.one("a", "decision", message_id="desk/parked")["expires_us"] = 0
    joined = verify(capsys, *exports.write(*"abc"), status=None)["joined"]
    assert not [one for one in joined["found"] if one["what"] != "checkpoint"]
    assert "parked" in next(one["why"] for one in joined["listed"] if one["message"] == "desk/parked")


def test_a_message_that_was_lost_is_not_fine(exports: Exports, capsys: pytest.CaptureFixture[str]) -> None:
    """Where all else fits together, exit 1 and one line with its id, its node and its decision."""
    away_too_long(exports)
    assert main(["audit", "verify", "--all", *exports.write(*"abc")]) == 1
    sent = exports.one("a", "decision", message_id="desk/away")
    told = [line for line in capsys.readouterr().out.splitlines() if "never_arrived" in line]
    place = f"decision {sent['decision_id']}, {exports.origin('a')} seq {sent['seq']}"
    assert [line.partition(": no log")[0] for line in told] == [f"never_arrived: desk/away ({place})"]


def test_a_log_that_is_left_out_is_asked_for(exports: Exports, capsys: pytest.CaptureFixture[str]) -> None:
    """Two of three that fit together as far as they go are not fine: what the third one has is said to be missing."""
    said = verify(capsys, *exports.write("a", "b"), status=1)
    assert said["joined"]["missing"] == [exports.origin("c")]
    [one] = said["joined"]["found"]
    assert (one["what"], one["other"]) == ("log_missing", exports.origin("c"))
    assert f"bring an export of {exports.origin('c')}" in one["why"]


def cut(exports: Exports) -> None:
    """The end, to an earlier checkpoint of that very log."""
    sizes = [one["size"] for one in exports.logs["c"] if "size" in one and one.get("origin") == exports.origin("a")]
    exports.logs["a"] = exports.logs["a"][: min(sizes) + 1]


def rewritten(exports: Exports) -> None:
    """A record of an agent that nobody else has a word of."""
    exports.one("a", "agent")["roles"] = ["admin"]


@pytest.mark.parametrize(("lie", "said"), [(cut, "cut off"), (rewritten, "written anew")])
def test_the_others_are_witnesses_of_a_log(
    lie: Callable[[Exports], None], said: str, exports: Exports, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever has a node's key can cut its log or write it anew, and the checkpoints on other nodes' logs show it."""
    lie(exports)
    told = verify(capsys, *exports.write(*"abc"), status=1)
    assert {one["integrity"] for one in told["logs"].values()} == {"ok"}
    found = [one for one in told["joined"]["found"] if one["what"] == "checkpoint"]
    assert found
    assert {one["other"] for one in found} == {exports.origin("a")}
    assert all(one["seq"] is not None for one in found)
    assert any(said in one["why"] for one in found)


def kept(begun: Path, folder: Path, name: str) -> list[str]:
    """The arguments that name a checkpoint of a home which was kept elsewhere."""
    file = folder / f"{name}.checkpoint"
    shutil.copy(begun / name / "checkpoint", file)
    return ["--checkpoint", str(file)]


def test_a_kept_checkpoint_is_of_the_log_that_it_names(
    begun: Path, exports: Exports, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In whatever order they are given each anchors its own log, and shows that the end of that one was cut off."""
    given = [*kept(begun, tmp_path, "c"), *kept(begun, tmp_path, "a")]
    logs = verify(capsys, *exports.write(*"abc"), *given, status=0)["logs"]
    assert [logs[exports.origin(name)]["unanchored"] for name in "ac"] == [0, 0]
    assert main(["audit", "verify", "--all", *exports.write(*"abc"), *given]) == 0
    assert capsys.readouterr().out.count("records are the first of this log") == 2
    last = exports.logs["a"].pop()
    assert last["kind"] == "checkpoint"
    exports.logs["a"].pop()
    cut = verify(capsys, *exports.write(*"abc"), *given, status=1)["logs"]
    assert cut[exports.origin("a")]["first_bad"]["damage"] == "truncated"
    assert cut[exports.origin("c")]["first_bad"] is None


def test_a_checkpoint_of_no_log_that_was_named_is_wrong_usage(
    begun: Path, exports: Exports, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor can there be two of one log, nor what is none; exit 2 says which file."""
    of_c = kept(begun, tmp_path, "c")
    assert main(["audit", "verify", "--all", *exports.write(*"ab"), *of_c]) == 2
    assert f"is of {exports.origin('c')}, which is none of these logs" in capsys.readouterr().err
    assert main(["audit", "verify", "--all", *exports.write(*"abc"), *of_c, *of_c]) == 2
    assert "are of one log" in capsys.readouterr().err
    junk = tmp_path / "junk"
    junk.write_bytes(b"\xff\n")
    assert main(["audit", "verify", "--all", *exports.write(*"abc"), "--checkpoint", str(junk)]) == 2
    assert "no checkpoint" in capsys.readouterr().err
    assert main(["audit", "verify", str(begun / "c"), *of_c, *of_c]) == 2
    assert "several" in capsys.readouterr().err


def test_the_joining_alone_needs_no_more_than_the_standard_library(exports: Exports, tmp_path: Path) -> None:
    """An auditor copies one file, and gets the same lines and the same exit status."""
    script = shutil.copy(alone.__file__, tmp_path / "joined.py")

    def run() -> tuple[int, str]:
        files = [argument for argument in exports.write(*"abc") if argument.endswith(".jsonl")]
        done = subprocess.run([sys.executable, "-I", "-S", script, *files], capture_output=True, text=True, check=False)
        assert not done.stderr
        return done.returncode, done.stdout

    assert run()[0] == 0
    other_end(exports)
    status, told = run()
    assert status == 1
    assert "other_end: desk/plain" in told


@pytest.mark.parametrize("given", [[], ["a"], ["a", "a"]])
def test_fewer_than_two_logs_are_wrong_usage(given: list[str], begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is held against itself, and exit 2 says what to name."""
    assert main(["audit", "verify", "--all", *(str(begun / name) for name in given)]) == 2
    assert "name" in capsys.readouterr().err


def test_an_export_without_its_key_is_wrong_usage(exports: Exports, capsys: pytest.CaptureFixture[str]) -> None:
    """Whose key is lacking is said."""
    given = exports.write("a", "b")
    assert main(["audit", "verify", "--all", *given[:3], given[3]]) == 2
    assert f"nobody named the key of {given[3]}" in capsys.readouterr().err
