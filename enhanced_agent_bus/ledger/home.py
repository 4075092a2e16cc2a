"""The home of a bus on disk: its names and keys, and atomic file writes.

Not here: what `bus.db` holds (store), `eab.toml` (settings), and the constitutions that are kept beside them.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from enhanced_agent_bus.errors import AuditUnavailable, ConfigInvalid, StoreCorrupt
from enhanced_agent_bus.ledger.checkpoint import Signer
from enhanced_agent_bus.ledger.lock import BLOCKED, HomeLock
from enhanced_agent_bus.outcome import BlockedLoop
from enhanced_agent_bus.ports import Checkpoints

HOME_VERSION = 1
_UNFINISHED = "home.json.part"  # there while a home is being made; its db holds no record yet
_PART = f"{_UNFINISHED}.part"  # its first bytes, not yet under their name
_MADE_HERE = frozenset(
    {"lock", "doubt", "blocked", "running", "keys", "constitutions", "checkpoint", "checkpoint.part"}
    | {"witnessed", "witnessed.part"}
    | {"bus.db", "bus.db-journal", "bus.db-wal", "bus.db-shm", _UNFINISHED, _PART}
)
_NO_DOUBT = -1
PENDING = "new_log"  # in home.json: what a new log that is being made will declare as lost
_NEXT_KEY = "log.key.next"  # the key that a rotation is about to begin with
#: A home holds what agents say to each other: it is for the user who made it, until somebody says otherwise.
HOME_MODE = 0o700
_NODE_KEY = "node.key"  # signs letters to other nodes
_NODE_VKEY = "node.vkey"


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Readers see the old bytes or the new ones, and so does whoever looks after a power loss."""
    part = path.with_name(path.name + ".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    part.replace(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(slots=True)
class Home:
    """A home that this process has locked. `fresh` until its first record is written and `finish` was called."""

    path: Path
    bus: str
    node: str
    signer: Signer
    lock: HomeLock
    fresh: bool
    loss: Mapping[str, Any] | None = None  # what a new log in a lost one's place declares with its first record
    checkpoints: Checkpoints | None = None  # who is told of each new one

    @property
    def origin(self) -> str:
        """The log's name in checkpoints."""
        return f"{self.bus}/{self.node}"

    @property
    def database(self) -> Path:
        return self.path / "bus.db"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def constitutions(self) -> Path:
        return self.path / "constitutions"

    def finish(self) -> None:
        """From here on this folder is a home: what is missing from it later was lost."""
        if self.loss is not None:
            names = read_names(self.path / "home.json")
            write_names(self.path / "home.json", {name: names[name] for name in names if name != PENDING})
            self.loss = None
            return
        (self.path / _UNFINISHED).replace(self.path / "home.json")
        sync_folder(self.path)
        self.fresh = False

    def read_mark(self) -> dict[str, Any] | None:
        """The high-water mark that the bus keeps in home.json (its constitution's revision); None without."""
        mark = read_names(self._file()).get("high_water")
        return dict(mark) if isinstance(mark, dict) else None

    def write_mark(self, mark: Mapping[str, Any]) -> None:
        """Keeps the mark, outside the database, so that losing the one does not lose the other."""
        file = self._file()
        write_names(file, {**read_names(file), "high_water": dict(mark)})

    @property
    def node_signer(self) -> Signer:
        """The key with which this node signs letters to others; made where a home has none yet, kept beside the log's.

        Raises: StoreCorrupt, when it was lost or cannot be read; AuditUnavailable, when the disk does not take it.
        """
        folder = self.path / "keys"
        try:
            if (folder / _NODE_KEY).exists():
                signer = Signer(self.origin, _read_private(folder / _NODE_KEY, "node"))
                _tell_node_key(folder, signer)
                return signer
            if (folder / _NODE_VKEY).exists():
                raise StoreCorrupt(
                    f"the node's key {folder / _NODE_KEY} is missing, and other nodes may know its {_NODE_VKEY}",
                    remedy=f"restore keys/ from a backup; or remove {_NODE_VKEY}, and give the others the new one",
                )
            return make_node_key(folder, self.origin)
        except OSError as error:
            raise AuditUnavailable(
                f"the node's key cannot be written into {folder}: {error.strerror}",
                remedy="look at its owner, and at the disk it is on",
            ) from error

    def next_signer(self) -> Signer:
        """A new key under this log's name, kept until `take_next_key`. Raises: OSError."""
        signer = Signer.fresh(self.origin)
        write_atomically(self.path / "keys" / _NEXT_KEY, _private(signer), mode=0o600)
        return signer

    @property
    def has_next_key(self) -> bool:
        return (self.path / "keys" / _NEXT_KEY).exists()

    def take_next_key(self, vkey: str | None) -> None:
        """From here on the next key signs, when it is the one that the log names; else there is none any more.

        The old public key stays in `keys/`. Cut off anywhere, it is done again at the next opening. Raises: OSError.
        """
        folder = self.path / "keys"
        file = folder / _NEXT_KEY
        key = load_pem_private_key(file.read_bytes(), password=None)
        assert isinstance(key, Ed25519PrivateKey)
        signer = Signer(self.origin, key)
        if signer.verifier.vkey != vkey:  # of a rotation that did not come to be
            file.unlink()
            return
        old = self.signer.verifier
        write_atomically(folder / f"log-{old.key_id.hex()}.vkey", f"{old.vkey}\n".encode())
        write_atomically(folder / "log.vkey", f"{signer.verifier.vkey}\n".encode())
        file.replace(folder / "log.key")
        sync_folder(folder)
        self.signer = signer

    def read_doubt(self) -> int | None:
        """From which seq on records were reported as not written by a store that then broke; None when none were."""
        try:
            seq = int((self.path / "doubt").read_bytes() or b"-1")
        except (FileNotFoundError, ValueError):
            return None
        return None if seq == _NO_DOUBT else seq

    def write_doubt(self, seq: int | None) -> None:
        """Notes it in place, in a file that has the room already: the disk may be full just now. Raises: OSError."""
        descriptor = os.open(self.path / "doubt", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(descriptor, b"%020d" % (_NO_DOUBT if seq is None else seq), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def note_blocked(self, blocked: BlockedLoop | None) -> None:
        """For whoever asks how a bus stands that cannot answer just now: a small file, while that lasts."""
        file = self.path / BLOCKED
        with suppress(OSError):  # it is a courtesy
            if blocked is None:
                file.unlink(missing_ok=True)
            else:
                at = blocked.at.isoformat(timespec="microseconds").replace("+00:00", "Z")
                document = {"agent": blocked.agent, "where": blocked.where, "seconds": blocked.seconds, "at": at}
                file.write_text(json.dumps(document | {"over": False}), encoding="utf-8")

    def release(self) -> None:
        self.note_blocked(None)
        self.lock.release()

    def _file(self) -> Path:
        return self.path / (_UNFINISHED if self.fresh else "home.json")


def is_new(path: Path) -> bool:
    """True for a folder that is none, is empty, has at most an eab.toml, or where the making of a home was cut off."""
    if (path / "home.json").exists() or not path.is_dir():
        return not path.exists()
    names = {entry.name for entry in path.iterdir()} - {"eab.toml", "eab.toml.part", "lock"}
    return names <= {_PART} or (_UNFINISHED in names and names <= _MADE_HERE)


def open_home(path: str | Path, *, make: bool = True, bus: str | None = None) -> Home:
    """Locks a home, and makes it first where there is none and `make` is set, of the bus with this id if one is given.

    Raises: StoreLocked; StoreCorrupt, for a home with parts missing; ConfigInvalid, for a folder that is no home;
    AuditUnavailable, when the disk does not take it.
    """
    folder = Path(path).absolute()
    if is_new(folder):
        if not make:
            raise ConfigInvalid(f"there is no home at {folder}", remedy="make one with `eab init`, or name another")
        missing = [place for place in (folder, *folder.parents) if not place.exists()]
        try:
            folder.mkdir(mode=HOME_MODE, parents=True, exist_ok=True)
            for place in reversed(missing):
                sync_folder(place.parent)
        except OSError as error:
            raise ConfigInvalid(f"the home {folder} cannot be made: {error.strerror}", remedy="name another") from None
    elif not (folder / "home.json").exists():
        raise _no_home(folder)
    try:
        lock = HomeLock.take(folder)
        try:
            # Asked again: whoever had the lock until now may have made the home meanwhile.
            return _make(folder, lock, bus) if is_new(folder) else _recognise(folder, lock)
        except BaseException:
            lock.release()
            raise
    except OSError as error:
        raise AuditUnavailable(
            f"the home {folder} cannot be written: {error.strerror}",
            remedy="look at its owner, and at the disk it is on",
        ) from error


def new_bus_id() -> str:
    """A name that no other bus has."""
    return f"bus-{secrets.token_hex(6)}"


def new_node_id() -> str:
    """A name that no other node has."""
    return f"node-{secrets.token_hex(4)}"


def _no_home(folder: Path) -> ConfigInvalid | StoreCorrupt:
    if folder.is_dir() and (folder / "bus.db").exists():
        return StoreCorrupt(
            f"the home {folder} has a bus.db and no home.json", remedy="restore home.json and keys/ from a backup"
        )
    return ConfigInvalid(
        f"{folder} is not a home, and not empty either", remedy="name an empty folder, or one that `eab init` made"
    )


def _make(folder: Path, lock: HomeLock, bus: str | None) -> Home:
    bus, node = bus or new_bus_id(), new_node_id()
    signer = Signer.fresh(f"{bus}/{node}")
    # The names first, under a name that says "unfinished"; whatever an earlier attempt left is written over.
    write_atomically(folder / _UNFINISHED, _dump({"v": HOME_VERSION, "bus": bus, "node": node}))
    databases = ("bus.db", "bus.db-journal", "bus.db-wal", "bus.db-shm")
    for name in (*databases, "checkpoint", "checkpoint.part", "doubt", "witnessed"):
        (folder / name).unlink(missing_ok=True)
    (folder / "keys").mkdir(mode=0o700, exist_ok=True)
    (folder / "constitutions").mkdir(exist_ok=True)
    write_key(folder, signer)
    make_node_key(folder / "keys", signer.name)
    policy = generate_private_key(SECP256R1())
    pem = policy.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_atomically(folder / "keys" / "policy.key", pem, mode=0o600)
    public = policy.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_atomically(folder / "keys" / "policy.pub", public)
    home = Home(folder, bus, node, signer, lock, fresh=True)
    home.write_doubt(None)
    return home


def write_key(folder: Path, signer: Signer) -> None:
    """Keeps the log's key, and its public key beside it."""
    write_atomically(folder / "keys" / "log.key", _private(signer), mode=0o600)
    write_atomically(folder / "keys" / "log.vkey", f"{signer.verifier.vkey}\n".encode())


def make_node_key(folder: Path, origin: str) -> Signer:
    """The key first: a public one without it would be of a key that was lost."""
    signer = Signer.fresh(origin)
    write_atomically(folder / _NODE_KEY, _private(signer), mode=0o600)
    _tell_node_key(folder, signer)
    return signer


def _tell_node_key(folder: Path, signer: Signer) -> None:
    """Keeps the public key beside it, under the name that the node has now."""
    file, vkey = folder / _NODE_VKEY, f"{signer.verifier.vkey}\n".encode()
    if not file.exists() or file.read_bytes() != vkey:
        write_atomically(file, vkey)


def _private(signer: Signer) -> bytes:
    return signer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _read_private(file: Path, whose: str) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(file.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StoreCorrupt(
            f"the {whose}'s key {file} cannot be read ({type(error).__name__})", remedy="restore keys/ from a backup"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise StoreCorrupt(f"{file} is no Ed25519 key", remedy="restore keys/ from a backup")
    return key


def _recognise(folder: Path, lock: HomeLock) -> Home:
    if not (folder / "home.json").exists():
        raise _no_home(folder)
    names = read_names(folder / "home.json")
    bus, node = names.get("bus"), names.get("node")
    if names.get("v") != HOME_VERSION or not isinstance(bus, str) or not isinstance(node, str):
        raise StoreCorrupt(f"{folder / 'home.json'} cannot be read", remedy="restore it from a backup")
    key = _read_private(folder / "keys" / "log.key", "log")
    database = folder / "bus.db"
    if not database.is_file() or not database.stat().st_size:
        raise StoreCorrupt(
            f"the home {folder} has lost its bus.db",
            remedy="restore it from a backup; without one, `eab init --new-log` begins anew",
        )
    return Home(folder, bus, node, Signer(f"{bus}/{node}", key), lock, fresh=False)


def read_names(file: Path) -> dict[str, Any]:
    """What home.json says. Raises: StoreCorrupt."""
    try:
        names = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreCorrupt(
            f"{file} cannot be read ({type(error).__name__})", remedy="restore it from a backup"
        ) from None
    return names if isinstance(names, dict) else {}


def write_names(file: Path, names: Mapping[str, Any]) -> None:
    """Raises: OSError."""
    write_atomically(file, _dump(names))


def _dump(names: Mapping[str, Any]) -> bytes:
    return json.dumps(names, indent=2).encode() + b"\n"
