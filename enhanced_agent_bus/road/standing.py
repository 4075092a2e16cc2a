"""How the bus stands: its status, every weakening in force, and what has held up the loop. It changes nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from enhanced_agent_bus.admission.trial import Rollout
from enhanced_agent_bus.outcome import BlockedLoop, Candidate, Status
from enhanced_agent_bus.ports import Entry, PolicyEngine, Witnesses
from enhanced_agent_bus.road.desk import Desk
from enhanced_agent_bus.road.nodes import Nodes

BLOCKED_KEPT: Final = 10


class Standing:
    """What `status` and `security_state` say."""

    def __init__(
        self,
        desk: Desk,
        engine: PolicyEngine,
        witnesses: Witnesses,
        nodes: Nodes | None,
        *,
        weakenings: Sequence[str],
        home: str,
    ) -> None:
        """`weakenings` are those that were chosen at opening."""
        self._desk = desk
        self._engine = engine
        self._witnesses = witnesses
        self._nodes = nodes
        self._weakenings = list(weakenings)
        self._home = home
        self._blocked: deque[BlockedLoop] = deque(maxlen=BLOCKED_KEPT)

    def status(self) -> Status:
        """The state of the bus: `accounting` sums up, and `security_state` names every weakening in force."""
        active = self._desk.admission.active
        return Status(
            accounting=self._desk.accounting(),
            security_state=self.security_state(),
            constitution=active.digest,
            revision=active.revision,
            bus=self._desk.ledger.bus,
            node=self._desk.ledger.node,
            records=self._desk.ledger.size(),
            agents=sum(row.live for row in self._desk.registry.rows()),
            engine=dict(self._engine.label),
            home=self._home,
            shadow=None if self._desk.admission.shadow is None else self._desk.admission.shadow.candidate.digest,
            candidate=_candidate(self._desk.admission.rollout),
            breakers=self._breakers(),
            recovery_paused=self._desk.recoveries.paused,
            blocked=tuple(self._blocked),
            witnesses=tuple(self._witnesses.infos()),
            stopped=tuple(self._desk.stops),
            nodes=tuple(self._nodes.roster.infos()) if self._nodes is not None else (),
        )

    def security_state(self) -> list[str]:
        """Every weakening in force, sorted."""
        admission = self._desk.admission
        found = {
            *self._weakenings,
            *self._unwitnessed(),
            *self._desk.ledger.weakenings,
            *self._engine.weakenings,
            *(self._nodes.weakenings if self._nodes is not None else ()),
        }
        for active in (admission.active, *(() if admission.rollout is None else (admission.rollout.candidate,))):
            if active.loaded.source == "folder":
                found.add("constitution_folder")
            elif not active.loaded.signed:
                found.add("unsigned_constitution")
        return sorted(found)

    def was_blocked(self, blocked: BlockedLoop) -> None:
        """The loop goes on: what held it up stands in the status, and in the log where an agent's handler did it."""
        self._blocked.append(blocked)
        if blocked.agent and not self._desk.closed:
            fields = {"event": "blocked_loop", "agent": blocked.agent, "where": blocked.where}
            self._desk.ledger.put(Entry("agent", {**fields, "duration_us": int(blocked.seconds * 1e6)}))

    def _breakers(self) -> dict[str, str]:
        now = self._desk.clock.monotonic()
        shut = (post for post in self._desk.posts.values() if post.breaker.shut)
        return {post.agent_id: post.breaker.state(now) for post in shut}

    def _unwitnessed(self) -> Sequence[str]:
        """Another node that has this log's newest checkpoint on record is a witness outside its home."""
        found = self._witnesses.weakenings
        if self._nodes is not None and self._nodes.witnessed:
            return [name for name in found if name != "no_witness"]
        return found


def _candidate(out: Rollout | None) -> Candidate | None:
    if out is None:
        return None
    candidate = out.candidate
    return Candidate(
        candidate.digest, candidate.revision, out.percent, out.decisions, out.newest, out.refusals, out.errors
    )
