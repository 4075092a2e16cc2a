"""The frames between bus and worker, and when a lost worker is started again: pure functions, made-up input."""

import json
import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enhanced_agent_bus.engines.frames import (
    FRAME_BYTES_MAX,
    AnswerFrame,
    FrameReader,
    GarbageError,
    Op,
    decide_head,
    encode,
)
from enhanced_agent_bus.engines.worker import STARTS_MAX, STARTS_WINDOW_SECONDS, start_pause

ids = st.integers(0, 2**64 - 1)
answers = st.builds(AnswerFrame, ids, st.sampled_from([0, 1]), st.binary(max_size=300))


def _pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    return [stream[a:b] for a, b in pairwise(places)]


@pytest.mark.fuzz
@given(st.lists(answers, max_size=8), st.lists(st.integers(0, 2500), max_size=12))
def test_answers_come_out_as_they_went_in_however_the_stream_is_cut(sent: list[AnswerFrame], cuts: list[int]) -> None:
    """A frame may arrive in any number of pieces, and a piece may hold any number of frames."""
    stream = b"".join(encode(answer.id, answer.status, answer.body) for answer in sent)
    reader = FrameReader()
    got = [answer for piece in _pieces(stream, cuts) for answer in reader.feed(piece)]
    assert got == sent


@pytest.mark.fuzz
@given(st.lists(st.binary(max_size=64), max_size=20))
def test_garbage_ends_in_answers_or_an_error_and_in_nothing_else(pieces: list[bytes]) -> None:
    """Whatever a broken worker sends, reading it ends; every answer that comes out has a possible status."""
    reader = FrameReader()
    try:
        for piece in pieces:
            assert all(answer.status in {0, 1} for answer in reader.feed(piece))
    except GarbageError:
        return


@pytest.mark.parametrize(
    "head",
    [
        struct.pack("<IQB", 8, 1, 0),
        struct.pack("<IQB", 0, 1, 0),
        struct.pack("<IQB", FRAME_BYTES_MAX + 1, 1, 0),
        struct.pack("<IQB", 9, 1, 2),
    ],
    ids=["too short", "nothing", "too long", "unknown status"],
)
def test_a_frame_that_cannot_be_is_garbage(head: bytes) -> None:
    """A length or status outside of the protocol is seen at once, before anything is waited for."""
    with pytest.raises(GarbageError):
        FrameReader().feed(head)


@given(ids, st.binary(max_size=80), st.binary(max_size=300), st.integers(0, 2**32 - 1))
def test_a_decide_frame_is_laid_out_as_documented(frame_id: int, tenant: bytes, body: bytes, timeout_us: int) -> None:
    """Digest | u32 timeout | u16 length and tenant | document, behind the common header."""
    frame = decide_head(frame_id, b"f" * 64, tenant, len(body), timeout_us) + body
    length, got_id, op = struct.unpack_from("<IQB", frame)
    assert (length, got_id, op) == (len(frame) - 4, frame_id, Op.DECIDE)
    rest = frame[13:]
    assert rest[:64] == b"f" * 64
    assert struct.unpack_from("<IH", rest, 64) == (timeout_us, len(tenant))
    assert rest[70:] == tenant + body


def test_what_is_larger_than_a_frame_is_not_sent() -> None:
    """The limit holds for both kinds of question."""
    with pytest.raises(ValueError, match="larger"):
        encode(1, Op.LOAD, bytes(FRAME_BYTES_MAX))
    with pytest.raises(ValueError, match="larger"):
        decide_head(1, b"f" * 64, b"acme", FRAME_BYTES_MAX, 1)


@given(st.dictionaries(st.text(), st.text(), max_size=5))
def test_a_json_body_is_the_rest_of_its_frame(document: dict[str, str]) -> None:
    """What `encode` puts behind the header is the body and nothing else."""
    frame = encode(7, Op.LOAD, json.dumps(document).encode())
    assert json.loads(frame[13:]) == document


def _starts(seconds: float, *, failing: bool) -> list[float]:
    """When workers would be started in this time, if each one died at once."""
    now = 0.0
    starts: list[float] = []
    while True:
        now += start_pause(starts, len(starts) if failing else 0, now)
        if now > seconds:
            return starts
        starts.append(now)
        now += 0.01  # how long each one lived


def test_a_replacement_is_started_at_once() -> None:
    """The first loss costs no pause."""
    assert start_pause([], 0, 100.0) == 0.0
    assert start_pause([99.9], 0, 100.0) == 0.0


@pytest.mark.parametrize("failing", [True, False], ids=["never ready", "ready and lost"])
def test_there_is_no_storm_of_restarts(failing: bool) -> None:  # noqa: FBT001  (a parameter of the test)
    """Whatever kills the workers, they are started a bounded number of times in any window, and it never stops."""
    starts = _starts(60.0, failing=failing)
    for start in starts:
        assert len([other for other in starts if start <= other < start + STARTS_WINDOW_SECONDS]) <= STARTS_MAX
    assert starts[-1] > 57.0
    if failing:
        assert len(starts) < 40
