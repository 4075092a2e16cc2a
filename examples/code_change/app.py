"""A team of agents that changes the greeting of a product, as one workflow. README.md tells how it is run."""

from __future__ import annotations

import hashlib
from typing import Any

from enhanced_agent_bus import AgentBus, Message
from enhanced_agent_bus.workflow import Call, SoFar, Step, Workflow


def commit_of(so_far: SoFar) -> str:
    """What the architect has made of the ticket; empty where that got no answer."""
    return str(so_far.replies.get("design", {}).get("commit", ""))


CHANGE = Workflow(
    "code-change",
    [
        Step(
            "design",
            to="architect",
            payload=lambda so_far: {"write": so_far.input["text"]},
            undo=Call(payload=lambda so_far: {"revert": commit_of(so_far)}),
        ),
        Step(
            "test",
            to="tests",
            after=["design"],
            payload=lambda so_far: dict(so_far.replies["design"]),
            accept=lambda reply: reply["passed"] is True,
        ),
        # Nobody looks at what the reviewer says: the constitution does.
        Step("review", capability="review", after=["design"], payload=lambda so_far: dict(so_far.replies["design"])),
        Step(
            "deploy",
            to="deployer",
            after=["test", "review"],
            payload=lambda so_far: {"deploy": commit_of(so_far)},
            undo=Call(payload=lambda so_far: {"take_back": commit_of(so_far)}),
        ),
    ],
    timeout=120,
)


async def build(bus: AgentBus) -> None:
    """Registers the team, and the agent that runs the workflow; `eab run` calls this with the bus it has opened."""

    async def design(message: Message) -> dict[str, Any]:
        if "revert" in message.payload:
            return {"reverted": message.payload["revert"]}
        text = message.payload["write"]
        return {"commit": hashlib.sha256(text.encode()).hexdigest()[:12], "text": text}

    async def test(message: Message) -> dict[str, Any]:
        filled = message.payload["text"].replace("{name}", "Ada")
        return {"commit": message.payload["commit"], "passed": "Ada" in filled and "{" not in filled}

    async def review(message: Message) -> dict[str, Any]:
        return {"commit": message.payload["commit"], "approved": "!" not in message.payload["text"]}

    async def deploy(message: Message) -> dict[str, Any]:
        if "take_back" in message.payload:
            return {"taken_back": message.payload["take_back"]}
        return {"live": message.payload["deploy"]}

    async def change(message: Message) -> dict[str, Any]:
        # After a crash the bus delivers this message again, and the run goes on where it was.
        result = await CHANGE.run(bus, changes, message.payload, id=message.id)
        failed = {failure.step: failure.code for failure in result.failed}
        return {"state": result.state, "failed": failed, "undone": list(result.undone)}

    await bus.register("architect", design, tenant="acme")
    await bus.register("tests", test, tenant="acme", roles=["tester"])
    await bus.register("reviewer", review, tenant="acme", roles=["reviewer"], capabilities=["review"])
    await bus.register("deployer", deploy, tenant="acme", capabilities=["production"])
    changes = await bus.register("changes", change, tenant="acme", concurrency=4, timeout=600)
    await bus.register("desk", tenant="acme")
