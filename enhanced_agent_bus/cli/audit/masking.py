"""Masks what an export shows: asks the mask of the settings, in a policy worker, about each decision.

Not here: what the rules do (`audit/formats/masking`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson

from enhanced_agent_bus.audit.formats import opa
from enhanced_agent_bus.audit.formats.masking import BadMaskError, masked, redacted, rules_of
from enhanced_agent_bus.audit.formats.row import Origin, Row
from enhanced_agent_bus.errors import ConfigInvalid

if TYPE_CHECKING:
    from enhanced_agent_bus.engines.worker import WorkerEngine

MASK_SECONDS_MAX: Final = 2.0  # an evaluation that takes longer redacts everything
MASK_BYTES_MAX: Final = 1024 * 1024
TOGETHER: Final = 32  # rows that are asked about at once


class Masking:
    """The mask of one file, and how often it failed."""

    def __init__(self, path: Path, origin: Origin) -> None:
        """Raises: ConfigInvalid, when it cannot be read."""
        self.failed = 0
        self.remedy = f"correct {path}: data.system.log.mask is a set of paths or of {{op, path, value}}"
        self._path = path
        self._origin = origin
        remedy = "mend the setting audit.mask, or leave it out"
        try:
            with path.open("rb") as file:
                text = file.read(MASK_BYTES_MAX + 1)
            self._text = text.decode()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise ConfigInvalid(f"the mask {path} cannot be read: {why}", remedy=remedy) from None
        if len(text) > MASK_BYTES_MAX:
            raise ConfigInvalid(f"the mask {path} has more than {MASK_BYTES_MAX} bytes", remedy=remedy)

    @contextmanager
    def applied(self, rows: Iterable[Row]) -> Iterator[Iterator[Row]]:
        """The rows, each decision masked when its turn comes. Raises: ConfigInvalid, EngineMissing, on entry."""
        with asyncio.Runner() as runner:
            opened = self._opened()
            engine = runner.run(opened.__aenter__())
            try:
                yield self._masked_pages(runner, engine, iter(rows))
            finally:
                runner.run(opened.__aexit__(None, None, None))

    def _masked_pages(self, runner: asyncio.Runner, engine: WorkerEngine, rows: Iterator[Row]) -> Iterator[Row]:
        while page := list(islice(rows, TOGETHER)):
            yield from runner.run(self._page(engine, page))

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[WorkerEngine]:
        from enhanced_agent_bus.engines.worker import WorkerEngine

        engine = await WorkerEngine.start(workers=1)
        try:
            await engine.load_mask(self._path, self._text)  # now, so that nothing is written when it does not compile
            yield engine
        finally:
            await engine.close()

    async def _page(self, engine: WorkerEngine, page: list[Row]) -> list[Row]:
        digest = await engine.load_mask(self._path, self._text)  # a worker that had to be replaced has it again
        return list(await asyncio.gather(*[self._masked(engine, digest, row) for row in page]))

    async def _masked(self, engine: WorkerEngine, digest: str, row: Row) -> Row:
        event = opa.event(row, self._origin)
        if event is None:
            return row
        answer = await engine.decide(digest, "", orjson.dumps(event), MASK_SECONDS_MAX)
        try:
            if answer.code is not None:
                raise BadMaskError(answer.code)
            return masked(row, event, rules_of(orjson.loads(answer.body)))
        except ValueError:  # no answer, one in another form, or no JSON: nothing that it might have hidden is shown
            self.failed += 1
            return redacted(row, event)
