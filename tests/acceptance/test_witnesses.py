"""What witnesses are good for: which part of a log they cover, and what they find that the log alone cannot show."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from enhanced_agent_bus import AgentBus, ConfigInvalid, open_bus
from enhanced_agent_bus.audit.notes import notes_in
from enhanced_agent_bus.cli.app import run_command
from enhanced_agent_bus.ledger import rows
from enhanced_agent_bus.ledger.home import open_home
from enhanced_agent_bus.ledger.store import HEARTBEAT_SECONDS, Store
from enhanced_agent_bus.ports import Entry
from enhanced_agent_bus.witness.keeper import BEHIND_SECONDS
from tests.developer import SteppedClock, log, small_bus, until
from tests.support import write_constitution


def eab(*arguments: str) -> int:
    """The exit status of one command, in a thread of its own: it runs a loop of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run_command, list(arguments)).result()


class Kept:
    """A folder with a home and a file that witnesses it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.notes = folder / "notes"
        self.audit: Mapping[str, Any] = {"witnesses": [f"file:{self.notes}"]}
        self._capsys = capsys

    async def used(self, times: int = 1, notes: str | None = None) -> None:
        """The bus is opened and closed so often; `notes` is another file than usual, an empty one none."""
        audit = self.audit if notes is None else {"witnesses": [f"file:{self.folder / notes}"] if notes else []}
        for number in range(times):
            async with small_bus(self.folder, audit=audit) as bus:
                await bus.put_fact("agent", "desk", f"times-{number}", 1)

    def verify(self, *arguments: str, status: int = 0) -> dict[str, Any]:
        """What `eab audit verify` says."""
        self._capsys.readouterr()
        given = arguments or ("--witness", str(self.notes))
        found = eab("--home", str(self.home), "--json", "audit", "verify", *given)
        out, err = self._capsys.readouterr()
        assert found == status, out + err
        document: dict[str, Any] = json.loads(out or err)
        return document


@pytest.fixture
def kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Kept:
    """Nothing yet."""
    return Kept(tmp_path, capsys)


# --- verifying -----------------------------------------------------------------------------------------------------


async def test_what_a_witness_covers_is_anchored_and_the_rest_is_named(kept: Kept) -> None:
    """Verify reads the witnesses that the settings name, and says from where on nobody vouches for the log."""
    await kept.used(2)
    (kept.home / "eab.toml").write_text(f'[audit]\nwitnesses = ["file:{kept.notes}"]\n')
    whole = kept.verify("--require-anchor")
    assert (whole["unanchored"], whole["cannot_exclude"]) == (0, [])
    (witness,) = whole["witnesses"]
    newest = list(notes_in(kept.notes.read_text()))[-1]
    assert (witness["covers"], witness["error"]) == (newest.size, None)
    (kept.home / "eab.toml").unlink()
    await kept.used(notes="")
    (kept.home / "eab.toml").write_text(f'[audit]\nwitnesses = ["file:{kept.notes}"]\n')
    tail = kept.verify("--require-anchor", status=1)
    assert tail["unanchored"] == tail["size"] - newest.size - 1
    assert tail["first_bad"] is None
    assert eab("--home", str(kept.home), "audit", "verify") == 0


async def test_a_witness_that_is_away_anchors_nothing_and_breaks_nothing(kept: Kept) -> None:
    """A witness of the settings that cannot be read is said to be so; one that is named on the line has to be there."""
    await kept.used()
    (kept.home / "eab.toml").write_text(f'[audit]\nwitnesses = ["file:{kept.folder}/nowhere", "stdout:"]\n')
    found = kept.verify("--require-anchor", status=1)
    assert found["witnesses"][0]["error"] == "No such file or directory"
    assert found["unanchored"] == found["size"]
    assert kept.verify("--witness", "nowhere", status=2)["error"]["code"] == "file"
    assert "cannot be read back" in kept.verify("--witness", "stdout:", status=2)["error"]["message"]


async def test_collected_lines_are_a_witness_too(kept: Kept) -> None:
    """What `stdout:` wrote, among other lines and as Docker keeps it, is read as any file of checkpoints."""
    await kept.used(2)
    (*_, newest) = notes_in(kept.notes.read_text())
    line = json.dumps({"event": "eab_checkpoint", "size": newest.size, "note": newest.text})
    for text in (f"serving\n{line}\nbye\n", json.dumps({"log": line + "\n", "stream": "stdout"}) + "\n{not json\n"):
        kept.notes.write_text(text)
        assert kept.verify("--witness", str(kept.notes), "--require-anchor")["unanchored"] == 0


async def test_an_older_backup_is_truncated(kept: Kept) -> None:
    """A log that ends before what a witness has was cut."""
    await kept.used()
    shutil.copytree(kept.home, kept.folder / "backup")
    await kept.used()
    shutil.rmtree(kept.home)
    (kept.folder / "backup").rename(kept.home)
    bad = kept.verify(status=1)["first_bad"]
    assert bad["damage"] == "truncated"
    assert f"{kept.notes} has" in bad["why"] or "checkpoint vouches" in bad["why"]


async def test_a_log_that_was_cut_and_grew_again_is_found_by_an_older_checkpoint(kept: Kept) -> None:
    """All checkpoints of a witness count: a newest one that fits does not make up for one that does not."""
    await kept.used()
    shutil.copytree(kept.home, kept.folder / "backup")
    await kept.used()
    shutil.rmtree(kept.home)
    (kept.folder / "backup").rename(kept.home)
    await kept.used(3, notes="others")
    (*_, newest) = notes_in((kept.folder / "others").read_text())
    (kept.folder / "newest").write_text(newest.text)
    assert kept.verify("--checkpoint", str(kept.folder / "newest"), "--require-anchor")["integrity"] == "ok"
    found = kept.verify("--checkpoint", str(kept.folder / "newest"), "--witness", str(kept.notes), status=1)
    (_, older) = (note.size for note in list(notes_in(kept.notes.read_text()))[-2:])
    assert found["first_bad"]["damage"] == "replaced"
    assert found["first_bad"]["seq_to"] <= older - 1
    assert "the log of which" in found["first_bad"]["why"]


async def test_two_histories_are_named_as_such(kept: Kept) -> None:
    """Two checkpoints of one size with different roots, both signed: the log told two witnesses two stories."""
    await kept.used()
    shutil.copytree(kept.home, kept.folder / "twin")
    await kept.used(notes="a")
    (kept.home).rename(kept.folder / "first")
    (kept.folder / "twin").rename(kept.home)
    await kept.used(notes="b")
    bad = kept.verify("--witness", str(kept.folder / "a"), "--witness", str(kept.folder / "b"), status=1)["first_bad"]
    assert bad["damage"] == "replaced"
    assert "two histories" in bad["why"]


async def test_a_log_replaced_together_with_its_key_is_found(kept: Kept) -> None:
    """A new log under the old name, with a key of its own, is consistent in itself; the witness has another key's."""
    await kept.used(2)
    async with small_bus(kept.folder, home="other", audit={"witnesses": [f"file:{kept.folder / 'theirs'}"]}) as other:
        theirs = f"{other.status().bus}/{other.status().node}"
    (ours,) = {note.origin for note in notes_in(kept.notes.read_text())}
    (kept.folder / "forged").write_text((kept.folder / "theirs").read_text().replace(theirs, ours))
    bad = kept.verify("--witness", str(kept.folder / "forged"), status=1)["first_bad"]
    assert bad["damage"] == "replaced"
    assert "another key signed" in bad["why"]
    assert kept.verify("--witness", str(kept.folder / "theirs"))["witnesses"][0]["checkpoints"] == 0


async def test_a_log_whose_key_was_changed_keeps_its_witnesses(kept: Kept) -> None:
    """Checkpoints under the old key and the new one are both the log's own, whichever key the auditor was given."""
    await kept.used()
    before = kept.folder / "before.vkey"
    shutil.copy(kept.home / "keys" / "log.vkey", before)
    async with small_bus(kept.folder, audit=kept.audit) as bus:
        await bus.rotate_key()
    await kept.used()
    for key in (before, kept.home / "keys" / "log.vkey"):
        arguments = ("--witness", str(kept.notes), "--key", str(key), "--require-anchor")
        assert kept.verify(*arguments)["unanchored"] == 0


async def test_a_bus_that_witnesses_others_verifies(kept: Kept) -> None:
    """Checkpoints of other logs are records like any other, and never taken for a log's own."""
    async with small_bus(kept.folder, home="other") as other:
        kept.audit = {"witnesses": [f"bus:{kept.folder / 'other'}"]}
        await kept.used(2)
        assert other.status().records
    assert eab("--home", str(kept.folder / "other"), "audit", "verify") == 0
    assert len(log(kept.folder / "other", "witness")) >= 2
    assert kept.verify("--witness", str(kept.folder / "other"), "--require-anchor")["unanchored"] == 0


# --- running -------------------------------------------------------------------------------------------------------


async def test_a_witness_that_stays_away_is_a_weakening_until_it_is_back(kept: Kept) -> None:
    """What fails is in the status at once, a weakening after a minute, and recorded when it comes and when it goes."""
    clock = SteppedClock()
    away = kept.folder / "disk" / "notes"
    audit = {"witnesses": [f"file:{away}"], "checkpoint_seconds": 0.05}
    async with small_bus(kept.folder, audit=audit, clock=clock) as bus:

        def info() -> Any:
            return bus.status().witnesses[0]

        await until(lambda: info().error is not None)
        assert "No such file" in info().error
        assert "witness_behind" not in bus.status().security_state
        clock.ahead_seconds = BEHIND_SECONDS + 5
        assert "witness_behind" in bus.status().security_state
        await until(lambda: log(kept.home, "witness", event="behind"))
        away.parent.mkdir()
        await until(lambda: info().size is not None and not info().behind_seconds, seconds=20)
        assert "witness_behind" not in bus.status().security_state
        await until(lambda: log(kept.home, "witness", event="caught_up"))
    assert [record["event"] for record in log(kept.home, "witness")] == ["behind", "caught_up"]
    assert eab("--home", str(kept.home), "audit", "verify") == 0


async def test_one_witness_that_answers_is_enough(kept: Kept) -> None:
    """`witness_behind` says that nobody has the end of the log; a second witness that is away shows in the status."""
    clock = SteppedClock()
    audit = {"witnesses": [f"file:{kept.folder}/disk/notes", f"file:{kept.notes}"]}
    async with small_bus(kept.folder, audit=audit, clock=clock) as bus:
        await until(lambda: bus.status().witnesses[0].error and bus.status().witnesses[1].size is not None)
        clock.ahead_seconds = BEHIND_SECONDS + 5
        assert bus.status().witnesses[0].behind_seconds > BEHIND_SECONDS
        assert "witness_behind" not in bus.status().security_state


async def test_a_restored_backup_is_told_apart_at_once(kept: Kept) -> None:
    """A witness that has more than the log is a weakening of its own, recorded, and gets nothing more."""
    await kept.used()
    shutil.copytree(kept.home, kept.folder / "backup")
    await kept.used()
    shutil.rmtree(kept.home)
    (kept.folder / "backup").rename(kept.home)
    before = kept.notes.read_bytes()
    async with small_bus(kept.folder, audit=kept.audit) as bus:
        await until(lambda: "witness_contradicts" in bus.status().security_state)
        await until(lambda: log(kept.home, "witness", event="contradicted"))
        (info,) = bus.status().witnesses
        assert "the end was cut off, or an older backup restored" in (info.error or "")
    assert kept.notes.read_bytes() == before
    status, doctor = (eab("--home", str(kept.home), name) for name in ("status", "doctor"))
    assert (status, doctor) == (0, 0)


async def test_the_status_at_rest_remembers_the_witnesses(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    """`eab status` and `eab doctor` say how each witness stands, with a bus and without; one in trouble is wrong."""
    await kept.used()
    away = kept.folder / "disk" / "notes"
    (kept.home / "eab.toml").write_text(f'[audit]\nwitnesses = ["file:{kept.notes}", "file:{away}"]\n')
    async with open_bus(kept.home) as bus:
        await until(lambda: bus.status().witnesses[1].error is not None)
    assert eab("--home", str(kept.home), "--json", "status") == 0
    first, second = json.loads(capsys.readouterr().out)["witnesses"]
    assert (first["size"], first["error"], first["behind_seconds"]) == (log(kept.home)[-1]["size"], None, 0)
    assert (second["size"], "No such file" in second["error"]) == (None, True)
    assert eab("--home", str(kept.home), "--json", "doctor") == 1
    found = [one for one in json.loads(capsys.readouterr().out)["findings"] if one["what"] == "witness"]
    assert [one["state"] for one in found] == ["note", "wrong"]  # the first is on the home's own disk


async def test_strict_needs_a_witness_that_answers(
    kept: Kept, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A strict bus starts with a signed constitution and a witness that took a checkpoint, and not without either."""
    bundle = signed_bundle(tmp_path)
    trusted = {"path": bundle, "trust": [str(tmp_path / "policy.pub")]}
    capsys.readouterr()

    async def opened(*witnesses: str) -> list[str]:
        audit = {"witnesses": list(witnesses)}
        async with open_bus(kept.home, constitution=trusted, strict=True, audit=audit) as bus:
            return bus.status().security_state

    with pytest.raises(ConfigInvalid, match="no_witness"):
        await opened()
    with pytest.raises(ConfigInvalid, match=r"no witness took the newest checkpoint .*No such file"):
        await opened(f"file:{tmp_path}/disk/notes")
    assert await opened(f"file:{tmp_path}/disk/notes", f"file:{kept.notes}") == []


def signed_bundle(folder: Path, *, revision: str = "1", key: bytes | None = None) -> Path:
    """A small constitution as a bundle, signed with this key (PEM) or a new one, whose public half is policy.pub."""
    if key is None:
        made = generate_private_key(SECP256R1())
        key = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        public = made.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / "policy.pub").write_bytes(public)
    (folder / "policy.key").write_bytes(key)
    bundle = folder / "bundle.tar.gz"
    write_constitution(folder / "signed", revision=revision)
    assert eab("policy", "build", str(folder / "signed"), "-o", str(bundle)) == 0
    assert eab("policy", "sign", str(bundle), "--key", str(folder / "policy.key")) == 0
    return bundle


async def test_commands_leave_standard_output_to_their_answers(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With `stdout:` a command that prints JSON prints that alone; its checkpoint goes to standard error."""
    kept = Kept(tmp_path, capfd)
    await kept.used()
    (kept.home / "eab.toml").write_text('[audit]\nwitnesses = ["stdout:"]\n')
    capfd.readouterr()
    command = ["--home", str(kept.home), "--json", "facts", "put", "conversation", "c-1", "seen", "1"]
    assert eab(*command) == 0
    out, err = capfd.readouterr()
    assert [json.loads(line).get("event") for line in out.splitlines()] in ([], [None])
    assert "eab_checkpoint" in err


# --- when checkpoints are signed -----------------------------------------------------------------------------------


def test_an_idle_log_signs_after_a_change_and_then_every_hour(tmp_path: Path) -> None:
    """Once so many seconds after something changed, and then hourly: what other logs had signed is no change."""
    clock = SteppedClock()
    (tmp_path / "home").mkdir()
    home = open_home(tmp_path / "home")
    store = Store.open(home, clock)

    def write(kind: str) -> None:
        entry = Entry(kind, {"event": "any"})
        store.write([(entry, rows.rest_of_record(entry), False)])

    def due(seconds_from_now: float) -> bool:
        clock.ahead_seconds += seconds_from_now
        found = store.checkpoint_due_in(10) <= 0
        clock.ahead_seconds -= seconds_from_now
        return found

    try:
        write("agent")
        assert (due(9), due(11)) == (False, True)
        for _ in range(2):
            clock.ahead_seconds += HEARTBEAT_SECONDS + 1
            store.write([], checkpoint=True)
            assert (due(11), due(HEARTBEAT_SECONDS - 60), due(HEARTBEAT_SECONDS + 1)) == (False, False, True)
        write("witness")
        assert (due(11), due(HEARTBEAT_SECONDS + 1)) == (False, True)
        write("agent")
        write("witness")
        assert due(11)
    finally:
        store.close()
        home.release()


async def test_the_heartbeat_reaches_the_witness(kept: Kept) -> None:
    """A bus in which nothing happens for an hour signs once more, and its witness has that."""
    clock = SteppedClock()
    audit = {**kept.audit, "checkpoint_seconds": 0.05}
    async with small_bus(kept.folder, audit=audit, clock=clock) as bus:
        await until(lambda: _rests(bus, kept))
        size = bus.status().records
        clock.ahead_seconds = HEARTBEAT_SECONDS + 1
        await bus.witness(FOREIGN)  # wakes the writer, and is no change itself
        await until(lambda: (bus.status().witnesses[0].size or 0) > size)
    (record, *_) = [one for one in log(kept.home, "checkpoint") if one["size"] > size]
    assert record["size"] == size + 1


FOREIGN = f"bus-1/node-1\n5\n{'A' * 43}=\n\n\N{EM DASH} bus-1/node-1 c2lnbmF0dXJl\n"


def _rests(bus: AgentBus, kept: Kept) -> bool:
    """Whether the newest record is a checkpoint that the witness has."""
    last = log(kept.home)[-1]
    return bool(last["kind"] == "checkpoint" and bus.status().witnesses[0].size == last["size"])
