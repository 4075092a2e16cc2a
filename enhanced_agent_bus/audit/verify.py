"""Checks a log with nothing but Python's standard library: `python -I verify.py FILE --key KEY [--checkpoint FILE]`.

FILE is an export, one record a line. Three verdicts: integrity (bytes, tree, signatures), completeness
(contiguous, every decision ended or open, no outcome without its decision, no gap in a sender's count), time (order).
Followed: RFC 6962, RFC 8032, C2SP tlog-checkpoint and signed-note. Not here: trust in the software that wrote the log.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import lru_cache
from hashlib import sha256, sha512
from itertools import islice
from pathlib import Path

CLOCK_STEP_SECONDS = 5.0
ENDS = {"delivered", "refused", "expired", "dead_lettered", "discarded"}


@dataclass
class Bad:
    """The first thing found wrong, at one record or, where only that is provable, somewhere in a range."""

    seq: int
    seq_to: int
    kind: str | None
    damage: str  # altered, missing, duplicated, out_of_order, inserted, truncated, replaced
    why: str


@dataclass
class Report:
    """The verdicts are `ok` or `bad`."""

    integrity: str = "ok"
    completeness: str = "ok"
    time: str = "ok"
    size: int = 0
    root: str = ""
    checkpoint_size: int | None = None  # of the outside checkpoint, or else of the newest one that is inside
    unanchored: int = 0  # how many records at the end no outside checkpoint vouches for
    cannot_exclude: list[str] = field(default_factory=list)
    erased: int = 0
    open: int = 0  # decisions whose message has not ended
    content: int | None = None  # of a home: how many payloads and texts stand beside the records; None: not looked at
    clock_steps: list[dict[str, float]] = field(default_factory=list)  # where wall and steady clock went apart
    rotations: list[dict[str, object]] = field(default_factory=list)  # where the log's key was changed
    losses: list[dict[str, object]] = field(default_factory=list)  # logs that this one was begun in place of
    first_bad: Bad | None = None

    @property
    def ok(self) -> bool:
        return self.first_bad is None and "bad" not in (self.integrity, self.completeness, self.time)

    def blame(self, verdict: str, bad: Bad) -> None:
        """The first one counts; a range gives way to a place inside it. Without its end a log is not complete."""
        setattr(self, verdict, "bad")
        self.completeness = "bad" if bad.damage == "truncated" else self.completeness
        if self.first_bad is None or bad.seq_to < self.first_bad.seq:
            self.first_bad = bad


_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, _P - 2, _P) % _P
_SQRT_M1 = pow(2, (_P - 1) // 4, _P)
_Point = tuple[int, int, int, int]


def _add(a: _Point, b: _Point) -> _Point:
    """RFC 8032 §5.1.4, extended homogeneous coordinates."""
    e, f = (a[1] - a[0]) * (b[1] - b[0]) % _P, (a[1] + a[0]) * (b[1] + b[0]) % _P
    g, h = 2 * a[3] * b[3] * _D % _P, 2 * a[2] * b[2] % _P
    return ((f - e) * (h - g) % _P, (h + g) * (f + e) % _P, (h - g) * (h + g) % _P, (f - e) * (f + e) % _P)


def _decompress(data: bytes) -> _Point:
    """RFC 8032 §5.1.3. Raises: ValueError, when the bytes are no point."""
    sign, y = divmod(int.from_bytes(data, "little"), 1 << 255)
    square = (y * y - 1) * pow(_D * y * y + 1, _P - 2, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * _SQRT_M1 % _P
    if y >= _P or (x * x - square) % _P or (not x and sign):
        raise ValueError("not a point of the curve")
    if x & 1 != sign:
        x = _P - x
    return (x, y, 1, x * y % _P)


_BASE = _decompress((4 * pow(5, _P - 2, _P) % _P).to_bytes(32, "little"))


@lru_cache(maxsize=16)  # the newest checkpoint is met in the log, beside it, and maybe outside
def ed25519_verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """RFC 8032 §5.1.7. Raises: ValueError, when key or signature hold no point."""
    scalar = int.from_bytes(signature[32:], "little")
    if len(public) != 32 or len(signature) != 64 or scalar >= _L:  # noqa: PLR2004 - the lengths that the RFC fixes
        return False
    (x, y, z, t), commitment = _decompress(public), _decompress(signature[:32])
    challenge = int.from_bytes(sha512(signature[:32] + public + message).digest(), "little") % _L
    minus, point = (_P - x, y, z, _P - t), (0, 1, 1, 0)
    sums = (point, _BASE, minus, _add(_BASE, minus))
    for bit in reversed(range(_L.bit_length())):  # the scalar times the base, less the challenge times the key
        point = _add(_add(point, point), sums[(scalar >> bit & 1) + 2 * (challenge >> bit & 1)])
    return not ((point[0] - commitment[0] * point[2]) % _P or (point[1] - commitment[1] * point[2]) % _P)


@dataclass(frozen=True)
class Key:
    """The public key of a log and its name, `<bus>/<node>`; the name is empty when a PEM did not tell it."""

    name: str
    public: bytes

    def opens(self, note: str) -> bool:
        """Whether this key signed the note, as the log of its name."""
        text, _, signatures = note.partition("\n\n")
        name = self.name or text.partition("\n")[0]
        key_id = sha256(name.encode() + b"\n\x01" + self.public).digest()[:4]
        with suppress(ValueError):
            for line in signatures.splitlines():
                dash, by, blob = line.split(" ")
                signature = base64.b64decode(blob, validate=True)
                if (dash, by, signature[:4]) == ("\N{EM DASH}", name, key_id) and text.startswith(f"{name}\n"):
                    return ed25519_verify(self.public, f"{text}\n".encode(), signature[4:])
        return False


def read_key(text: str) -> Key:
    """A C2SP vkey, `name+id+key`. Raises: ValueError."""
    name, key_id, encoded = (*text.strip().split("+", 2), "", "")[:3]
    raw = base64.b64decode(encoded, validate=True)
    if raw[:1] != b"\x01" or sha256(name.encode() + b"\n" + raw).hexdigest()[:8] != key_id:
        raise ValueError("the key is no vkey for Ed25519: a home has it in keys/log.vkey")
    return Key(name, raw[1:])


@dataclass(frozen=True)
class Note:
    """The three lines that a checkpoint signs, and the whole note."""

    size: int
    root: bytes
    text: str


def read_note(text: str) -> Note:
    """Raises: ValueError."""
    lines = text.split("\n")
    if len(lines) < 5 or not lines[1].isdecimal():  # noqa: PLR2004 - origin, size, root, empty, signature
        raise ValueError("no checkpoint: origin, size and root are expected on three lines")
    return Note(int(lines[1]), base64.b64decode(lines[2], validate=True), text)


@dataclass
class Source:
    """A log that can be read more than once, and what its home says beside it."""

    records: Callable[[int], Iterator[tuple[int, bytes]]]  # from one on: the number of its row or line, and the bytes
    last: int | None = None  # the newest row that is looked at; of a file it is not known before
    state: Callable[[str], str | None] = lambda _message_id: None
    unlike: Callable[[Scan], Bad | None] = lambda _scan: None  # what else it says, of a log that is whole in itself


def export(path: Path) -> Source:
    """An exported log, one record a line. Raises: OSError, when there is none."""

    def lines(start: int) -> Iterator[tuple[int, bytes]]:
        with path.open("rb") as file:
            yield from islice(enumerate(line.removesuffix(b"\n") for line in file), start, None)

    path.stat()
    return Source(lines)


def grow(frontier: list[bytes], size: int, leaf: bytes) -> None:
    """Appends a leaf to a tree of `size` leaves: the roots of its full subtrees, the largest first (RFC 6962 §2.1)."""
    while size & 1:
        leaf = sha256(b"\1" + frontier.pop() + leaf).digest()
        size >>= 1
    frontier.append(leaf)


def root_of(frontier: list[bytes]) -> bytes:
    """The root of the tree with these full subtrees."""
    root = b""
    for subtree in reversed(frontier):
        root = sha256(b"\1" + subtree + root).digest() if root else subtree
    return root or sha256(b"").digest()


_OF_DECISION = ((b'"sender_n":', b","), (b'"sender":"', b'"'), (b'"verdict":"', b'"'), (b'"decision_id":"', b'"'))
_OF_OUTCOME = ((b'"decision_id":"', b'"'), (b'"state":"', b'"'))


def _told(body: bytes, start: int, keys: tuple[tuple[bytes, bytes], ...]) -> list[bytes]:
    """The values of keys: found where the bus writes them, before the first brace inside, and else by parsing."""
    at, brace, told = start, body.find(b"{", start), list[bytes]()
    for key, end in keys:
        at = body.find(key, at, brace)
        if at < 0:
            record = json.loads(body)
            return [str(record.get(key.split(b'"')[1].decode())).encode() for key, _ in keys]
        at += len(key)
        told.append(body[at : body.find(end, at)])
    return told


class Scan:
    """One pass over a log: every check that needs no second look."""

    def __init__(self, source: Source, key: Key, outside: Note | None) -> None:
        self.report = Report()
        self.frontier: list[bytes] = []
        self.seen: list[Note] = []  # checkpoints inside, with the right root; signatures are checked when they matter
        self.outside_root: bytes | None = None  # of the log at the size of the outside checkpoint
        self.outside_size = -1 if outside is None else outside.size
        self.before = b""  # the time of the record before
        self.source, self._key = source, key
        bus, _, node = key.name.encode().partition(b"/")
        self._names = b'","bus":"%b","node":"%b"' % (bus, node) if node else b'","bus":"'
        self._open: dict[bytes, int] = {}  # message id to the seq of its newest decision without an outcome
        self._allowed, self._not_allowed = set[bytes](), set[bytes]()
        self._counts: dict[bytes, int] = {}  # how far each sender has counted
        self._steady: dict[str, tuple[float, float]] = {}  # boot to seconds of its steady clock and of the wall's
        self._kinds: dict[bytes, Callable[[int, bytes, int], bool]] = {  # each says whether the rest can be judged
            b"decision": lambda seq, body, start: self.decided(seq, *_told(body, start, _OF_DECISION)),
            b"outcome": lambda seq, body, start: self.ended(seq, *_told(body, start, _OF_OUTCOME)),
            b"checkpoint": self._checkpoint,
        }
        self._kinds |= {b"opened": self._clock, b"closed": self._clock, b"key": self._rotated, b"gap": self._gap}
        self._handovers: dict[int, tuple[Key, Key]] = {}  # by the record of a rotation: the old key and the new one

    def run(self) -> None:
        """Reads until the end, or until something is found after which the rest cannot be placed."""
        self.look(self.source.records(0))

    def look(self, records: Iterable[tuple[int, bytes]]) -> bool:
        """Looks at records, the next ones; whether the rest can be judged after them."""
        frontier, names, kinds, outside = self.frontier, self._names, self._kinds, self.outside_size
        expected, before = self.report.size, self.before
        try:
            for row, body in records:
                if expected == outside:
                    self.outside_root = root_of(frontier)
                front = b'{"v":1,"seq":%d,"kind":"' % expected
                end = body.find(b'"', len(front))
                start = end + 35  # behind `","at":"` and the time
                if row != expected or not body.startswith(front) or not body.startswith(names, start):
                    self.report.blame("integrity", self._misplaced(expected, row, body))
                    return False
                kind, at = body[len(front) : end], body[end + 8 : start]
                if at < before:
                    self._blame("time", expected, kind, "inserted", f"at {at.decode()}: before the record before it")
                before = at
                check = kinds.get(kind)
                if check is None:
                    self.report.erased += kind == b"erasure"
                elif not check(expected, body, start):
                    return False
                grow(frontier, expected, sha256(b"\0" + body).digest())
                expected += 1
            if expected == outside:
                self.outside_root = root_of(frontier)
        finally:
            self.report.size, self.before = expected, before
        return True

    def end(self) -> None:
        """Every decision has ended, or its message still waits."""
        for message_id, seq in self._open.items():
            state = self.source.state(message_id.decode())
            self.report.open += state not in ENDS
            if state in ENDS and self.report.integrity == "ok":  # otherwise what it lacks may be what is damaged
                why = f"message {message_id.decode()} has ended as {state}, and no outcome says so"
                self._blame("completeness", seq, b"decision", "missing", why)

    def _blame(self, verdict: str, seq: int, kind: bytes, damage: str, why: str) -> bool:
        self.report.blame(verdict, Bad(seq, seq, kind.decode(), damage, why))
        return False

    def decided(self, seq: int, counted: bytes, sender: bytes, verdict: bytes, decision_id: bytes) -> bool:
        number = int(counted) if counted.isdigit() else 0
        (self._allowed if verdict == b"allow" else self._not_allowed).add(decision_id)
        if verdict != b"refuse":
            self._open[decision_id.rpartition(b"#")[0]] = seq
        last = self._counts.get(sender, -1)
        if number > last:
            self._counts[sender] = number
        if number > last + 1:
            self._blame("completeness", seq, b"decision", "missing", f"{sender.decode()} counted {last}, then {number}")
        return True

    def ended(self, seq: int, decision_id: bytes, state: bytes) -> bool:
        self._open.pop(decision_id.rpartition(b"#")[0], None)
        if decision_id not in self._allowed and (state == b"delivered" or decision_id not in self._not_allowed):
            why = f"{state.decode()}, and no decision {decision_id.decode()} that allows it: a bypass"
            self._blame("completeness", seq, b"outcome", "missing", why)
        return True

    def _checkpoint(self, seq: int, body: bytes, start: int) -> bool:
        record = json.loads(body)
        if (record["size"], record["root"]) != ((note := read_note(record["note"])).size, note.root.hex()):
            return self._blame("integrity", seq, b"checkpoint", "altered", "it contradicts its own note")
        if note.size == seq and note.root == root_of(self.frontier):
            self.seen.append(note)
            return self._clock(seq, body, start)
        self.look_ahead()
        if not self.signed(note):
            damage = "altered" if self.seen else "replaced"
            return self._blame("integrity", seq, b"checkpoint", damage, "it was not signed by this log's key")
        good = next((seen.size for seen in reversed(self.seen) if self.signed(seen)), 0)
        bad = Bad(good, seq - 1, None, "altered", f"the checkpoint at size {seq} vouches for other records")
        if note.size != seq:  # records before it were taken out or put in, and the rest was numbered anew
            damage, verdict = ("missing", "completeness") if note.size > seq else ("inserted", "integrity")
            bad = Bad(good, seq, None, damage, f"a checkpoint of {note.size} records has {seq} before it")
            self.report.blame(verdict, bad)
        self.report.blame("integrity", bad)
        return False

    def _rotated(self, seq: int, body: bytes, _start: int) -> bool:
        record = json.loads(body)
        self._handovers[seq] = read_key(record["previous"]), read_key(record["vkey"])
        self.report.rotations.append({"seq": seq, "vkey": record["vkey"]})
        return True

    def _gap(self, seq: int, body: bytes, _start: int) -> bool:
        record = json.loads(body)
        self.report.losses.append({"seq": seq, **{name: record[name] for name in ("origin", "size", "root")}})
        return True

    def look_ahead(self) -> None:
        """At the changes of the key alone, where they are needed before the scan has come to them."""
        known = len(self.report.rotations)
        for seq, body in self.source.records(0):
            if b',"kind":"key",' in body[:64]:
                self._rotated(seq, body, 0)
        del self.report.rotations[known:]

    def signed_ever(self, note: Note) -> bool:
        """Whether any key that this log had signed it, as far as that can be read."""
        if not self._key.opens(note.text):
            with suppress(OSError, ValueError, KeyError, TypeError):
                self.look_ahead()
        return self.signed(note)

    def signed(self, note: Note) -> bool:
        """Whether the key signed it that was in force at its size; where it was changed, both did."""
        keys: tuple[Key, ...] = (self._key,)
        for seq, (old, new) in sorted(self._handovers.items()):
            keys = (old,) if note.size <= seq else (old, new) if note.size == seq + 1 else (new,)
            if note.size <= seq + 1:
                break
        return all(key.opens(note.text) for key in keys)

    def broken_handover(self) -> Bad | None:
        """Every change of the key was signed by both, the old key being the one before, and ours is one of them."""
        handed, notes = sorted(self._handovers.items()), {note.size: note for note in self.seen}
        olds, news = ([keys[at].public for _, keys in handed] for at in (0, 1))
        for at, (seq, _) in enumerate(handed):
            note = notes.get(seq + 1)
            if note is None or not self.signed(note) or olds[at] != ([olds[0], *news][at]):
                return Bad(seq, seq, "key", "replaced", "the old key and the new one did not both sign this change")
        if handed and self._key.public not in (*olds, *news):
            return Bad(0, self.report.size - 1, None, "replaced", "none of this log's keys is the one given")
        return None

    def _clock(self, seq: int, body: bytes, _start: int) -> bool:
        record = json.loads(body)
        boot, wall = record.get("boot"), datetime.fromisoformat(record["at"]).timestamp()
        if boot:
            steady = record["mono_us"] / 1e6
            steady_before, wall_before = self._steady.get(boot, (steady, wall))
            self._steady[boot] = (steady, wall)
            if steady < steady_before - CLOCK_STEP_SECONDS:  # two threads read it, and write in either order
                self._blame("time", seq, record["kind"].encode(), "out_of_order", "the steady clock went back")
            step = (wall - wall_before) - (steady - steady_before)
            if abs(step) > CLOCK_STEP_SECONDS:
                self.report.clock_steps.append({"seq": seq, "seconds": round(step, 3)})
        return True

    def _misplaced(self, expected: int, row: int, body: bytes) -> Bad:
        """A second look at a record that is not the one that belongs here."""
        try:
            record = json.loads(body)
            number, kind, name = record["seq"], record["kind"], f"{record['bus']}/{record['node']}"
        except (ValueError, KeyError, TypeError):
            return Bad(expected, expected, None, "altered", "this is no record")
        if self._key.name not in ("", name):
            damage = "inserted" if expected else "replaced"
            return Bad(expected, expected, kind, damage, f"the record belongs to another log, {name}")
        if not isinstance(number, int) or (number == expected and row <= expected):
            return Bad(expected, expected, kind, "altered", "the record does not begin as records do")
        if number < expected:
            damage = "duplicated" if any(at < row and it == body for at, it in self.source.records(0)) else "inserted"
            return Bad(number, number, kind, damage, f"a second record {number} stands at {row}")
        if any(at > row and later.startswith(b'{"v":1,"seq":%d,' % expected) for at, later in self.source.records(0)):
            return Bad(expected, number, kind, "out_of_order", f"record {number} stands before record {expected}")
        self.report.completeness, last = "bad", max(number, row) - 1
        why = f"record {last + 1} follows record {expected - 1}" if expected else f"it begins with record {last + 1}"
        return Bad(expected, last, None, "missing", why)


def verify(source: Source, key: Key, outside: Note | None = None, scanning: Callable[..., Scan] = Scan) -> Report:
    """Checks a log, against an outside checkpoint too; where no key of the log signed that one, no further."""
    scan = scanning(source, key, outside)
    report = scan.report
    if outside is not None and not scan.signed_ever(outside):
        told = f"the outside checkpoint, of {outside.text.splitlines()[0]}, was not signed by a known key of "
        report.blame("integrity", Bad(0, max(outside.size - 1, 0), None, "replaced", told + (key.name or "this log")))
        return report
    try:
        scan.run()
        _judge(scan, outside)
        scan.end()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        report.blame("integrity", Bad(report.size, report.size, None, "altered", f"it cannot be read: {error!r}"))
    return report


def _judge(scan: Scan, outside: Note | None) -> None:
    report, seen, size = scan.report, scan.seen, scan.report.size
    report.checkpoint_size = next((note.size for note in (outside, *seen[-1:]) if note), None)
    # The record that carries the outside checkpoint is known through it.
    vouched = outside.size + any(one.text == outside.text for one in seen) if outside else 0
    report.unanchored = max(0, size - vouched)
    unsigned = size > max([vouched, *(one.size + 1 for one in seen)])
    possible = {"altered": unsigned or (outside and report.unanchored)}
    possible |= {"replaced": not outside, "truncated": report.unanchored}
    report.cannot_exclude = [damage for damage, not_seen in possible.items() if not_seen]
    if report.integrity == "bad":
        return
    report.root = root_of(scan.frontier).hex()
    if bad := scan.broken_handover() or _unsigned(scan) or _unlike(scan, outside) or scan.source.unlike(scan):
        report.blame("integrity", bad)


def _unsigned(scan: Scan) -> Bad | None:
    """The newest signature vouches for everything before it; only where it is wrong the others are looked at."""
    seen, size = scan.seen, scan.report.size
    if seen and scan.signed(seen[-1]):
        return None
    if good := [one.size for one in seen if scan.signed(one)]:
        bad = next(one.size for one in seen if one.size > good[-1])
        return Bad(good[-1], bad, None, "altered", "a checkpoint that this log's key did not sign")
    if not size:
        return Bad(0, 0, None, "missing", "the log is empty")
    return Bad(0, size - 1, None, "replaced", "no checkpoint in it was signed by this log's key")


def _unlike(scan: Scan, outside: Note | None) -> Bad | None:
    """Against the checkpoint that came from outside."""
    size, signed = scan.report.size, scan.seen[-1].size
    if outside is None:
        return None
    if not scan.signed(outside):
        return Bad(0, outside.size - 1, None, "replaced", "the outside checkpoint is signed by a key that was retired")
    if outside.size > size:
        why = f"a checkpoint vouches for {outside.size} records, {size} are left"
        return Bad(size, outside.size - 1, None, "truncated", why)
    if scan.outside_root == outside.root:
        return None
    # Signed checkpoints inside that go as far make this another log, not a changed one.
    first, damage = (0, "replaced") if signed >= outside.size else (signed, "altered")
    return Bad(first, outside.size - 1, None, damage, "not the log that the outside checkpoint vouches for")


def main(arguments: list[str]) -> int:
    """Exit status: 0 nothing wrong found, 1 something found, 2 wrong usage."""
    parser = argparse.ArgumentParser(description="Checks a log of the bus with nothing but Python.")
    parser.add_argument("log", type=Path, help="an export; of a home: SELECT body FROM records ORDER BY seq")
    parser.add_argument("--key", type=Path, required=True, help="a file with the log's vkey, such as keys/log.vkey")
    parser.add_argument("--checkpoint", type=Path, help="a signed checkpoint that was kept elsewhere")
    parser.add_argument("--require-anchor", action="store_true", help="fail where no outside checkpoint vouches")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args(arguments)
    if given.log.is_dir():
        parser.error(f"{given.log} is a folder: give an export, every body of the table `records`, one a line")
    try:
        outside = given.checkpoint and read_note(given.checkpoint.read_text())
        source, key = export(given.log), read_key(given.key.read_text())
    except (OSError, ValueError) as error:
        parser.error(str(error))
    report = verify(source, key, outside)
    lines = [json.dumps(asdict(report))] if given.json else [f"{name:16}{v}" for name, v in asdict(report).items()]
    sys.stdout.write("\n".join([*lines, ""]))
    return 0 if report.ok and not (given.require_anchor and report.unanchored) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
