"""The deadlines of the questions that policy workers are asked, kept on this side by one timer.

Not here: what becomes of the questions of a worker that was ended for one of them (worker).
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from typing import Final

from enhanced_agent_bus.engines.link import Question
from enhanced_agent_bus.verdict import Answer

OVERDUE_SECONDS: Final = 0.25  # how long after a question's deadline its worker may live without having answered
TIMER_SECONDS: Final = 0.005  # the timer wakes no more often than this


class Deadlines:
    """Answers what has no answer in time, and ends the worker that is then still at it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._heap: list[tuple[float, int, Question]] = []
        self._sequence = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, question: Question) -> None:
        """From now on it is answered by its deadline."""
        heap, deadline = self._heap, question.deadline
        while heap and heap[0][2].over():
            heapq.heappop(heap)
        heapq.heappush(heap, (deadline, next(self._sequence), question))
        timer = self._timer
        if timer is None or deadline < timer.when():
            if timer is not None:
                timer.cancel()
            self._timer = self._loop.call_at(deadline, self._on_timer)

    def stop(self) -> None:
        """No question is answered, and no worker ended, from here any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def clear(self) -> None:
        """Forgets every question."""
        self._heap.clear()

    def _on_timer(self) -> None:
        """Answers what is past its deadline, and kills the worker that is past its own."""
        self._timer = None
        now = self._loop.time()
        heap = self._heap
        while heap and heap[0][0] <= now:
            question = heapq.heappop(heap)[2]
            link = question.link
            if question.overdue:
                if link is not None and link.questions.get(question.id) is question:
                    link.end(f"a question was {OVERDUE_SECONDS:g} s past its deadline")
            elif not question.future.done():
                self._expire(question, now)
            elif question.future.cancelled() and link is not None and question.id in link.questions:
                self._watch(question, now)  # nobody waits for it, and still it must not hold a worker for ever
        if heap:
            self._timer = self._loop.call_at(max(heap[0][0], now + TIMER_SECONDS), self._on_timer)

    def _expire(self, question: Question, now: float) -> None:
        link = question.link
        if link is None:
            question.answer(Answer("policy_unavailable", detail="no policy worker was there in time"))
            return
        question.answer(Answer("policy_timeout", detail="no answer within the deadline"))
        if link.questions.get(question.id) is question:
            self._watch(question, now)

    def _watch(self, question: Question, now: float) -> None:
        """From now on its worker has OVERDUE_SECONDS left. From now, not from the deadline: the loop may be late."""
        question.overdue = True
        if question.link is not None:
            question.link.overdue += 1
        heapq.heappush(self._heap, (now + OVERDUE_SECONDS, next(self._sequence), question))
