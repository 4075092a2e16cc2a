"""Notices of what became of a message on its receiver's node, and the question whether one is still open.

Not here: what is done about them (road).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from enhanced_agent_bus.letters import fields as f
from enhanced_agent_bus.letters.dsse import ANSWER, NOTICE, NOTICES, QUESTION, BadLetter, Signs, decode, encode, verify


class Notice(NamedTuple):
    """A message has ended on the node `origin`, as record `seq` of its log says."""

    origin: str
    seq: int
    message_id: str
    digest: str
    state: str  # an end state: delivered, refused, expired, dead_lettered, discarded
    code: str | None
    attempts: int
    error: str | None  # its type
    reply_id: str | None
    decision_id: str  # the newest decision on it there
    at_us: int
    nonce: str


class Notices(NamedTuple):
    """Of several messages at once, under one signature."""

    notices: tuple[Notice, ...]


class Question(NamedTuple):
    """`origin` asks `to`: is this message, decided so, still open with you?"""

    origin: str
    to: str
    message_id: str
    decision_id: str
    at_us: int
    nonce: str


class Answered(NamedTuple):
    """What `origin` answers to the question with this nonce: `open`, or the state in which the message ended."""

    origin: str
    message_id: str
    decision_id: str
    open: bool
    state: str | None
    at_us: int
    nonce: str


Said = TypeVar("Said", Notice, Question, Answered)

NOTICE_FIELDS: Final = {
    "v": f.THIS_VERSION,
    "origin": f.ORIGIN,
    "seq": f.COUNT,
    "message_id": f.ID,
    "digest": f.HASH,
    "state": f.END,
    "code": f.CODE,
    "attempts": f.COUNT,
    "error": f.ERROR,
    "reply_id": f.or_null(f.ID),
    "decision_id": f.DECISION,
    "at_us": f.COUNT,
    "nonce": f.NONCE,
}
NOTICES_MAX: Final = 32
NOTICES_FIELDS: Final = {"v": f.THIS_VERSION, "notices": f.names(f.OBJECT, NOTICES_MAX)}
QUESTION_FIELDS: Final = {
    "v": f.THIS_VERSION,
    "origin": f.ORIGIN,
    "to": f.ORIGIN,
    "message_id": f.ID,
    "decision_id": f.DECISION,
    "at_us": f.COUNT,
    "nonce": f.NONCE,
}
ANSWER_FIELDS: Final = {
    "v": f.THIS_VERSION,
    "origin": f.ORIGIN,
    "message_id": f.ID,
    "decision_id": f.DECISION,
    "open": f.OPTION,
    "state": f.or_null(f.END),
    "at_us": f.COUNT,
    "nonce": f.NONCE,
}


def seal_notice(signer: Signs, notice: Notice) -> bytes:
    """Signs a notice; the name of an error's type is written in ASCII, as much of it as there is room for."""
    return _seal(signer, NOTICE, _in_ascii(notice))


def seal_notices(signer: Signs, notices: Sequence[Notice]) -> bytes:
    """Signs at most `NOTICES_MAX` of them at once; one alone is a plain notice."""
    if len(notices) == 1:
        return seal_notice(signer, notices[0])
    assert len(notices) <= NOTICES_MAX, f"{len(notices)} notices are more than one letter takes"
    document = {"v": f.VERSION, "notices": [_document(signer, _in_ascii(notice)) for notice in notices]}
    return encode(NOTICES, f.write(document), signer)


def _in_ascii(notice: Notice) -> Notice:
    error = notice.error
    if error is not None:
        error = error.encode("ascii", "backslashreplace").decode()[: f.ERROR_CHARS_MAX]
    return notice._replace(error=error)


def open_notice(body: bytes, keys: Mapping[str, Ed25519PublicKey]) -> Notice:
    """A notice, when the node that it names has signed it. Raises: BadLetter."""
    return read_notice(*_opened(body, NOTICE, keys))


def read_notice(origin: str, payload: bytes) -> Notice:
    """Reads the signed text of a notice. Raises: BadLetter."""
    return _read(Notice, NOTICE_FIELDS, "notice", origin, payload)


def read_notices(origin: str, payload: bytes) -> Notices:
    """Reads the signed text of several: all of them can be read, or none. Raises: BadLetter."""
    said = f.check(f.parse(payload, "list of notices"), NOTICES_FIELDS, "list of notices")
    return Notices(tuple(_made(Notice, NOTICE_FIELDS, "notice", origin, one) for one in said["notices"]))


def seal_question(signer: Signs, question: Question) -> bytes:
    """Signs a question."""
    return _seal(signer, QUESTION, question)


def open_question(body: bytes, keys: Mapping[str, Ed25519PublicKey]) -> Question:
    """A question, when the node that it names has signed it. Raises: BadLetter."""
    return read_question(*_opened(body, QUESTION, keys))


def read_question(origin: str, payload: bytes) -> Question:
    """Reads the signed text of a question. Raises: BadLetter."""
    return _read(Question, QUESTION_FIELDS, "question", origin, payload)


def seal_answer(signer: Signs, answer: Answered) -> bytes:
    """Signs an answer."""
    return _seal(signer, ANSWER, answer)


def open_answer(body: bytes, keys: Mapping[str, Ed25519PublicKey]) -> Answered:
    """An answer, when the node that it names has signed it; see `check_answer`. Raises: BadLetter."""
    return read_answer(*_opened(body, ANSWER, keys))


def read_answer(origin: str, payload: bytes) -> Answered:
    """Reads the signed text of an answer. Raises: BadLetter."""
    answer = _read(Answered, ANSWER_FIELDS, "answer", origin, payload)
    if answer.open != (answer.state is None):
        raise BadLetter("malformed", f"the answer on {answer.message_id} has an end and is open, or neither")
    return answer


def check_answer(answer: Answered, question: Question) -> None:
    """Raises: BadLetter, when this is not the answer to that question, or not of the node that was asked."""
    if answer.origin != question.to:
        raise BadLetter("identity_unproven", f"{answer.origin} answers what {question.to} was asked")
    asked = (question.nonce, question.message_id, question.decision_id)
    if (answer.nonce, answer.message_id, answer.decision_id) != asked:
        raise BadLetter("replayed", f"{answer.origin} answers another question than that on {question.message_id}")


def _seal(signer: Signs, kind: str, said: Notice | Question | Answered) -> bytes:
    return encode(kind, f.write(_document(signer, said)), signer)


def _document(signer: Signs, said: Notice | Question | Answered) -> dict[str, Any]:
    assert signer.name == said.origin, f"{signer.name} cannot sign for {said.origin}"
    return {"v": f.VERSION, **said._asdict()}


def _opened(body: bytes, kind: str, keys: Mapping[str, Ed25519PublicKey]) -> tuple[str, bytes]:
    """Who has signed a letter of this kind, and the signed text. Raises: BadLetter."""
    signed = decode(body)
    return signed.keyid, verify(signed, (kind,), keys)


def _read(made: type[Said], fields: Mapping[str, f.Field], what: str, origin: str, payload: bytes) -> Said:
    return _made(made, fields, what, origin, f.parse(payload, what))


def _made(made: type[Said], fields: Mapping[str, f.Field], what: str, origin: str, document: Any) -> Said:
    f.check(document, fields, what)
    del document["v"]
    said = made(**document)
    if said.origin != origin:
        raise BadLetter("identity_unproven", f"a letter of {said.origin} was signed by {origin}")
    if said.decision_id.rpartition("#")[0] != said.message_id:
        raise BadLetter("malformed", f"{said.decision_id} is no decision on {said.message_id}")
    return said
