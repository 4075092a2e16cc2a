"""Brings the newest signed checkpoint to each witness, in a thread for each, so that none holds up anything else.

Only the newest counts: what was signed meanwhile is passed over, and nothing queues. A witness that fails is asked
again, at growing distances. HOME/witnessed remembers how each stands; it is a note, never a proof. Not here: what a
witness is (file, git, ...), and what their checkpoints prove (audit).
"""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from enhanced_agent_bus.audit.homes import open_database
from enhanced_agent_bus.audit.notes import one_note
from enhanced_agent_bus.ledger import sql
from enhanced_agent_bus.ledger.home import write_atomically
from enhanced_agent_bus.outcome import WitnessInfo
from enhanced_agent_bus.ports import Clock, SignedNote, Witness
from enhanced_agent_bus.witness.standing import WITNESSED, Standing, document, standings

log: Final = logging.getLogger("enhanced_agent_bus")

#: A witness gets no more than one checkpoint in this time; under load there are several a second.
APART_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 1.0
RETRY_SECONDS_MAX: Final = 60.0
#: For so long a witness may lack what is signed before that is a weakening.
BEHIND_SECONDS: Final = 60.0
CLOSE_SECONDS_MAX: Final = 3.0
START_SECONDS_MAX: Final = 5.0


class Contradicted(Exception):
    """The witness has a checkpoint that this log cannot have signed."""


class Keeper:
    """Fills `ports.Checkpoints` and `ports.Witnesses`; opened on the loop."""

    def __init__(self, *, home: Path, origin: str, witnesses: Sequence[Witness], clock: Clock) -> None:
        self._on_change: Callable[[str, WitnessInfo], None] | None = None
        self._home = home
        self._origin = origin
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._woken = threading.Condition(self._lock)
        self._newest: SignedNote | None = None
        self._closing = self._closed = False
        self._kept = threading.Lock()  # one writer of the file at a time
        self._standings = standings(home, [witness.url for witness in witnesses], clock)
        self._tried = {witness.url: asyncio.Event() for witness in witnesses}
        self._ended = {witness.url: asyncio.Event() for witness in witnesses}
        self._witnesses = list(witnesses)
        self._look_again: asyncio.TimerHandle | None = None

    @classmethod
    def open(cls, *, home: Path, origin: str, witnesses: Sequence[Witness], clock: Clock) -> Keeper:
        """Starts a thread for each witness of the log named `origin`."""
        keeper = cls(home=home, origin=origin, witnesses=witnesses, clock=clock)
        for witness in witnesses:
            threading.Thread(target=keeper._serve, args=(witness,), name="eab-witness", daemon=True).start()
        return keeper

    # --- what the bus asks -----------------------------------------------------------------------------------------

    @property
    def weakenings(self) -> Sequence[str]:
        infos = self.infos()
        if not infos:
            return ("no_witness",)
        # One that has the newest is enough: what nobody has is what could be cut off unseen.
        behind = all(info.contradicts or info.behind_seconds > BEHIND_SECONDS for info in infos)
        found = ["witness_behind"] if behind else []
        return (*found, "witness_contradicts") if any(info.contradicts for info in infos) else tuple(found)

    def infos(self) -> list[WitnessInfo]:
        with self._lock:
            now = self._clock.monotonic()
            return [standing.info(url, now) for url, standing in self._standings.items()]

    def signed(self, note: str) -> None:
        """A checkpoint is in the home."""
        found = one_note(note)
        now, now_us = self._clock.monotonic(), self._clock.now_us()
        with self._lock:
            if self._newest is not None and found.size <= self._newest.size:
                return
            self._newest = found
            for standing in self._standings.values():
                if standing.size != found.size and standing.lacking_since is None:
                    standing.lacking_since, standing.lacking_since_us = now, now_us
            self._woken.notify_all()
        self._post(self._look)

    def tell(self, on_change: Callable[[str, WitnessInfo], None]) -> None:
        """From now on this hears of each witness that is "behind", "contradicted" or has "caught_up"."""
        self._on_change = on_change
        self._look()

    async def first(self) -> bool:
        """Waits until each was asked once, for START_SECONDS_MAX; whether one of them took a checkpoint."""
        with suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS_MAX):
                for tried in self._tried.values():
                    await tried.wait()
        with self._lock:
            return any(standing.met for standing in self._standings.values())

    async def close(self) -> None:
        """Each gets the newest once more, if it lacks it, for CLOSE_SECONDS_MAX in all; what hangs is left behind."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            self._woken.notify_all()
        if self._look_again is not None:
            self._look_again.cancel()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS_MAX):
                    for ended in self._ended.values():
                        await ended.wait()
        finally:
            late = [witness for witness in self._witnesses if not self._ended[witness.url].is_set()]
            with self._lock:
                for witness in late:
                    standing = self._standings[witness.url]
                    standing.error = standing.error or "it did not answer before the bus closed"
            if late:
                await asyncio.to_thread(self._remember)
            with self._kept:
                self._closed = True  # from here on the home may be another process's
            for witness in late:
                witness.stop()

    # --- the thread of a witness -----------------------------------------------------------------------------------

    def _serve(self, witness: Witness) -> None:
        standing, failures = self._standings[witness.url], 0
        try:
            while (note := self._next(standing, failures)) is not None:
                failures = 0 if self._serve_once(witness, standing, note) else failures + 1
                self._remember()
                self._post(self._tried[witness.url].set)
                self._post(self._look)
        finally:
            witness.stop()
            self._post(self._ended[witness.url].set)

    def _serve_once(self, witness: Witness, standing: Standing, note: SignedNote) -> bool:
        try:
            self._bring(witness, note, met=standing.met)
        except Contradicted as contradiction:
            self._failed(standing, str(contradiction), contradicts=True)
        except (OSError, ValueError) as error:
            self._failed(standing, _in_words(error), contradicts=False)
        else:
            self._took(standing, note)
            return True
        return False

    def _next(self, standing: Standing, failures: int) -> SignedNote | None:
        """The newest checkpoint, once this witness lacks it and it is time; None when there will be no more."""
        wait = min(RETRY_SECONDS * 2 ** min(failures - 1, 10), RETRY_SECONDS_MAX) if failures else APART_SECONDS
        if failures:
            wait *= random.uniform(0.5, 1.0)  # noqa: S311 - so that many buses do not come back together
        elif not standing.met:
            wait = 0.0
        with self._lock:
            closing = self._closing
            if not closing:
                closing = self._woken.wait_for(lambda: self._closing, timeout=wait)
            if not closing:
                self._woken.wait_for(lambda: self._closing or self._lacks(standing))
                closing = self._closing
            if not self._lacks(standing) or standing.last:
                return None
            standing.last = closing
            return self._newest

    def _lacks(self, standing: Standing) -> bool:
        return self._newest is not None and (standing.lacking_since is not None or not standing.met)

    def _bring(self, witness: Witness, note: SignedNote, *, met: bool) -> None:
        """Raises: Contradicted; OSError, ValueError."""
        newest = None if met else witness.newest(self._origin)
        if newest is not None:
            self._compare(newest, note)
            if newest.size == note.size:
                return
        witness.take(note)

    def _compare(self, theirs: SignedNote, ours: SignedNote) -> None:
        if theirs.size > ours.size:
            raise Contradicted(
                f"it has a checkpoint of {theirs.size} records of this log, which has {ours.size}: "
                "the end was cut off, or an older backup restored"
            )
        signed = ours.text if theirs.size == ours.size else self._signed_at(theirs.size)
        if signed is None or one_note(signed).root != theirs.root:
            raise Contradicted(
                f"its checkpoint of {theirs.size} records was not signed in this log: one of them was written anew"
            )

    def _signed_at(self, size: int) -> str | None:
        """The note that the log has at a size. Raises: OSError."""
        try:
            with open_database(self._home) as database:
                row = database.execute(sql.CHECKPOINT_AT, (size,)).fetchone()
        except sqlite3.Error as error:
            raise OSError(f"the log cannot be read: {error}") from None
        return None if row is None else str(row[2])

    def _took(self, standing: Standing, note: SignedNote) -> None:
        now_us = self._clock.now_us()
        with self._lock:
            standing.size, standing.at_us = note.size, now_us
            standing.met, standing.error, standing.contradicts = True, None, False
            if self._newest is not None and self._newest.size > note.size:
                standing.lacking_since, standing.lacking_since_us = self._clock.monotonic(), now_us
            else:
                standing.lacking_since = standing.lacking_since_us = None

    def _failed(self, standing: Standing, why: str, *, contradicts: bool) -> None:
        with self._lock:
            # It may have it after all, and is looked at before the next time.
            standing.met, standing.error, standing.contradicts = False, why, contradicts

    # --- how they stand --------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """On the loop: says what has changed, and looks again when something may become too old."""
        if self._closing or self._on_change is None:
            return
        for info in self.infos():
            self._say(info, self._on_change)
        if self._look_again is not None:
            self._look_again.cancel()
        left = [BEHIND_SECONDS - info.behind_seconds for info in self.infos() if info.behind_seconds]
        due = [seconds for seconds in left if seconds >= 0]
        self._look_again = self._loop.call_later(min(due) + 0.01, self._look) if due else None

    def _say(self, info: WitnessInfo, on_change: Callable[[str, WitnessInfo], None]) -> None:
        state = "contradicted" if info.contradicts else "behind" if info.behind_seconds > BEHIND_SECONDS else ""
        standing = self._standings[info.witness]
        if state and state != standing.said:
            standing.said = state
            log.warning("note: the witness %s is %s: %s", info.witness, state, info.error or "it does not answer")
            on_change(state, info)
        elif standing.said and not state and not info.behind_seconds:
            standing.said = ""
            log.warning("note: the witness %s has caught up", info.witness)
            on_change("caught_up", info)

    def _post(self, function: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left who could hear it
            self._loop.call_soon_threadsafe(function)

    def _remember(self) -> None:
        with self._kept:
            if self._closed:
                return
            with self._lock:
                text = document(self._standings)
            with suppress(OSError):  # a note: what is not remembered is asked of the witness again
                write_atomically(self._home / WITNESSED, text)


def _in_words(error: OSError | ValueError) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    named = f"{text}: {error.filename}" if isinstance(error, OSError) and error.filename else text
    return " ".join((named or type(error).__name__).split())[:300]
