"""The facts that all nodes of a bus share: a log of one slot, and one key an owner behind it.

The newest change stands whole under the key `last`: one compare-and-set makes it hold for all the owners that it
touches, or for none. Whoever makes the next one first brings the one before to the keys of its owners, which can be
done twice, and by anybody; so nothing waits for a node that died in the middle. What is known here is a copy as of the
newest change that this node has seen: a change that is made on an older one is a Conflict.

Not here: what a decision does with that (`agreeing.py`).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

import orjson

from enhanced_agent_bus.admission.facts import (
    COUNTERS,
    OWNERS_MAX,
    Added,
    FactBook,
    Number,
    Planned,
    Values,
    read,
    written,
)
from enhanced_agent_bus.errors import TransportAway
from enhanced_agent_bus.ports import Bucket, Conflict, FactChange, Item

BUCKET: Final = "facts"
LAST: Final = "last"
MESSAGE: Final = "message"  # beside the scopes: what one message has added, wherever it was decided
LOOKS_MAX: Final = 100
KEY_CHARS_MAX: Final = 180
_PLAIN: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")

Name = tuple[str, str]  # scope and owner; or MESSAGE and an id
Facts = dict[str, Number | Values]
Document = dict[str, Any]


class FactsTooLarge(Exception):
    """A change is larger than what the transport takes at once."""


class SharedFacts:
    """This node's copy of what it has read of them. All that is async here is called with `turn` held."""

    def __init__(
        self,
        bucket: Bucket,
        load: Callable[[str, str], Mapping[str, bytes]],
        *,
        node: str,
        session: str,
        bytes_max: int,
    ) -> None:
        """`load` reads the node's own rows: its counters, and the facts of an owner that no node has shared yet."""
        self._bucket = bucket
        self._local = load
        self.node = node
        self._session = session
        self._bytes_max = bytes_max
        self.turn = asyncio.Lock()
        self.book = FactBook(self._rows)
        self._known: OrderedDict[Name, Document | None] = OrderedDict()
        self._facts: dict[Name, Facts] = {}  # of the known owners
        self._revisions: dict[Name, int] = {}
        self._seq = 0  # of the newest change
        self._revision = 0  # of its key
        self._by = ""
        self._made = 0
        self._last: dict[Name, Document] = {}  # what it sets
        self._brought = True  # to the keys of its owners
        self._ended: set[str] = set()  # messages whose keys go with the next change

    # --- looking ---------------------------------------------------------------------------------------------------

    def knows(self, names: Iterable[Name]) -> bool:
        """Whether all of these are in the copy."""
        return all(name in self._known for name in names)

    def is_new(self, name: Name) -> None:
        """Nobody can have written anything about it yet."""
        if name not in self._known:
            self._keep(name, {"seq": 0, "scope": name[0], "owner": name[1], "facts": {}})
            self._revisions[name] = 0

    def added(self, message_id: str) -> list[Added]:
        """What a message has added, as far as that is known."""
        document = self._known.get((MESSAGE, message_id))
        return [] if document is None else [tuple(item) for item in document.get("added", ())]

    def decided_by(self, message_id: str) -> str | None:
        """The decision that what it has added stands for."""
        document = self._known.get((MESSAGE, message_id))
        return None if document is None else document.get("by")

    def home(self, message_id: str) -> str | None:
        """The node that answers for a message."""
        document = self._known.get((MESSAGE, message_id))
        return None if document is None else document.get("home")

    def facts(self, name: Name) -> Facts:
        return self._facts[name]

    async def look(self, names: Sequence[Name]) -> None:
        """Knows all of these, and the newest change. Raises: TransportAway."""
        await self.refresh()
        await self.complete(names)

    async def refresh(self) -> None:
        """Knows the newest change. Raises: TransportAway."""
        item, _ = await asyncio.gather(self._bucket.get(LAST), self._bring())
        revision = 0 if item is None else item.revision
        if revision == self._revision:
            return
        said: Mapping[str, Any]
        said = orjson.loads(item.value) if item is not None and item.value else {"seq": 0, "by": "", "set": []}
        if said["seq"] < self._seq:
            raise TransportAway("the shared facts were lost: the nodes of this bus have to be opened again")
        if said["seq"] != self._seq + 1:
            self._known.clear()
            self._facts.clear()
        self._newest(said, revision)
        self._brought = not self._last

    def _newest(self, said: Mapping[str, Any], revision: int) -> None:
        self._seq, self._revision, self._by = said["seq"], revision, said["by"]
        self._last = {(document["scope"], document["owner"]): document for document in said["set"]}
        for name, document in self._last.items():
            self._keep(name, document)

    async def complete(self, names: Sequence[Name]) -> None:
        """Knows all of these. Raises: TransportAway."""
        for _ in range(LOOKS_MAX):
            missing = [name for name in names if name not in self._known]
            if not missing:
                return
            items = await asyncio.gather(*(self._bucket.get(key_of(name)) for name in missing))
            documents: list[Document | None] = [None if item is None else _document(item) for item in items]
            if any(document is not None and document["seq"] > self._seq for document in documents):
                await self.refresh()
                continue
            for name, item, document in zip(missing, items, documents, strict=True):
                self._revisions[name] = 0 if item is None else item.revision
                self._keep(name, self._last.get(name, document))
        raise TransportAway("the shared facts change faster than they can be read")

    def _keep(self, name: Name, document: Document | None) -> None:
        if name not in self._known and len(self._known) >= OWNERS_MAX:
            oldest, _ = self._known.popitem(last=False)
            self._facts.pop(oldest, None)
        if len(self._revisions) > 2 * OWNERS_MAX:
            self._revisions.clear()
        self._known[name] = document
        if name[0] != MESSAGE:
            rows = self._local(*name) if document is None else _rows(document)
            facts = self._facts[name] = read({key: row for key, row in rows.items() if key}).facts
            self.book.adopt(*name, facts)

    def _rows(self, scope: str, owner: str) -> Mapping[str, bytes]:
        """For the book: the counters of this node, with the facts that all share."""
        local = self._local(scope, owner)
        facts = self._facts.get((scope, owner))
        if facts is None:
            return local
        rows = {key: row for key, fact in facts.items() if (row := written(fact)) is not None}
        return rows | {key: row for key, row in local.items() if key == COUNTERS}

    # --- changing --------------------------------------------------------------------------------------------------

    async def change(self, planned: Planned, message: Document | None = None) -> bool:
        """Makes a change hold, on what is known; False when that is not the newest any more, and nothing was changed.

        `message` is what the message that changes something has added now. Raises: TransportAway, when it may hold or
        not; FactsTooLarge.
        """
        await self._bring()
        documents = [_owner(name, facts) for name, facts in planned.touched.items()]
        gone = [_message(message_id) for message_id in self._ended]
        documents += [one for one in gone if message is None or one["owner"] != message["owner"]]
        if message is not None:
            documents.append(message)
        said = {"seq": self._seq + 1, "by": self._next_name(), "set": documents}
        for document in documents:
            document["seq"] = said["seq"]
        body = orjson.dumps(said)
        if len(body) > self._bytes_max:
            raise FactsTooLarge(f"a change of facts has {len(body)} bytes, and the transport takes {self._bytes_max}")
        try:
            revision = await self._bucket.swap(LAST, body, self._revision)
        except Conflict:
            return False
        except TransportAway:
            await self.refresh()
            if self._by != said["by"]:
                raise
        else:
            self._newest(said, revision)
            self._brought = False
        self._ended.difference_update(one["owner"] for one in gone)
        return True

    def _next_name(self) -> str:
        self._made += 1
        return f"{self.node}.{self._session}.{self._made}"

    def ended(self, message_id: str) -> None:
        """Nobody needs to know any longer what a message of this node has added."""
        if self.home(message_id) == self.node and len(self._ended) < OWNERS_MAX:
            self._ended.add(message_id)

    async def _bring(self) -> None:
        """What the newest change says goes to the keys of its owners. Raises: TransportAway."""
        if not self._brought:
            await asyncio.gather(*(self._bring_one(name, document) for name, document in self._last.items()))
            self._brought = True

    async def _bring_one(self, name: Name, document: Document) -> None:
        key = key_of(name)
        value = None if _is_gone(document) else orjson.dumps(document)
        for _ in range(LOOKS_MAX):
            revision = self._revisions.pop(name, None)
            if revision is None:
                item = await self._bucket.get(key)
                if item is None and value is None:
                    return
                if item is not None and _document(item)["seq"] >= document["seq"]:
                    self._revisions[name] = item.revision
                    return
                revision = 0 if item is None else item.revision
            try:
                self._revisions[name] = await self._bucket.swap(key, value, revision)
            except Conflict:
                continue
            return
        raise TransportAway(f"the key {key} changes all the time")

    # --- all of them -----------------------------------------------------------------------------------------------

    async def all(self) -> list[Document]:
        """Everything that there is, read anew. Raises: TransportAway."""
        await self.refresh()
        await self._bring()
        found: list[Item] = []
        (await self._bucket.watch(found.append))()
        return [_document(item) for item in found if item.key != LAST and item.value]

    async def rows(self) -> dict[Name, list[FactChange]]:
        """All shared facts by owner, as a ledger has them. Raises: TransportAway."""
        return {
            (document["scope"], document["owner"]): [
                FactChange(document["scope"], document["owner"], key, row) for key, row in _rows(document).items()
            ]
            for document in await self.all()
            if document["scope"] != MESSAGE
        }


def key_of(name: Name) -> str:
    """The key of an owner, the same for no other."""
    scope, owner = name
    text = "".join(chr(byte) if byte in _PLAIN else f"={byte:02X}" for byte in owner.encode())
    if len(text) > KEY_CHARS_MAX:
        text = f"=sha256={sha256(owner.encode()).hexdigest()}"
    return f"{scope}/{text or '='}"


def _owner(name: Name, facts: Facts) -> Document:
    rows = {key: orjson.Fragment(row) for key, fact in facts.items() if (row := written(fact)) is not None}
    document: Document = orjson.loads(orjson.dumps({"scope": name[0], "owner": name[1], "facts": rows}))
    return document


def _message(message_id: str) -> Document:
    """Of one whose key is to go."""
    return {"scope": MESSAGE, "owner": message_id}


def added_by(message_id: str, home: str, decision_id: str | None, added: Sequence[Added]) -> Document:
    """What a message has added, by which of its decisions, and which node answers for it."""
    if not added:
        return _message(message_id)
    return {**_message(message_id), "home": home, "by": decision_id, "added": [list(item) for item in added]}


def _is_gone(document: Document) -> bool:
    return document["scope"] == MESSAGE and "added" not in document


def _rows(document: Document) -> dict[str, bytes]:
    return {key: orjson.dumps(fact) for key, fact in document["facts"].items()}


def _document(item: Item) -> Document:
    """Raises: TransportAway, for what no node of this bus has written."""
    try:
        document: Document = orjson.loads(item.value or b"")
        int(document["seq"]), str(document["scope"]), str(document["owner"])
    except (KeyError, TypeError, ValueError):
        raise TransportAway(f"what stands under the shared key {item.key} is not of this bus") from None
    return document
