"""A question asked in a forked child of this process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any

from enhanced_agent_bus.verdict import Answer


async def is_refused_in_a_child(question: Coroutine[Any, Any, Answer]) -> bool:
    """Whether an engine answers policy_unavailable there, at once."""
    child = os.fork()
    if child == 0:
        verdict = 1
        try:
            question.send(None)
        except StopIteration as stop:
            verdict = 0 if stop.value.code == "policy_unavailable" else 1
        finally:
            os._exit(verdict)
    question.close()
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    return os.waitstatus_to_exitcode(status) == 0
