"""A message bus for AI agents: every message is decided by policy before it is delivered, and that can be proved."""

import importlib as _importlib
import typing as _typing

__all__ = [
    "Activation",
    "Agent",
    "AgentBus",
    "AgentExists",
    "AgentInfo",
    "AuditUnavailable",
    "BusClosed",
    "BusError",
    "Candidate",
    "ConfigInvalid",
    "ConstitutionRejected",
    "DeadLetter",
    "Deliberated",
    "Divergence",
    "Drained",
    "EngineMissing",
    "Erasure",
    "Fact",
    "Gate",
    "LegalHold",
    "Message",
    "NodeInfo",
    "NotDelivered",
    "Outcome",
    "Pass",
    "Priority",
    "Reason",
    "Receipt",
    "Recovery",
    "Refusal",
    "Refused",
    "RequestTimeout",
    "Retention",
    "Retry",
    "ShadowReport",
    "Status",
    "Stopped",
    "StoreCorrupt",
    "StoreLocked",
    "Strategy",
    "TransportAway",
    "Waiting",
    "open_bus",
]
__version__ = "0.1.0"

if _typing.TYPE_CHECKING:
    from enhanced_agent_bus.agent import Agent
    from enhanced_agent_bus.bus import AgentBus
    from enhanced_agent_bus.delivery.strategies import Strategy
    from enhanced_agent_bus.errors import (
        AgentExists,
        AuditUnavailable,
        BusClosed,
        BusError,
        ConfigInvalid,
        ConstitutionRejected,
        EngineMissing,
        NotDelivered,
        Refused,
        RequestTimeout,
        StoreCorrupt,
        StoreLocked,
        TransportAway,
    )
    from enhanced_agent_bus.message import Message, Priority
    from enhanced_agent_bus.outcome import (
        Activation,
        AgentInfo,
        Candidate,
        DeadLetter,
        Deliberated,
        Divergence,
        Drained,
        Erasure,
        Fact,
        LegalHold,
        NodeInfo,
        Outcome,
        Receipt,
        Recovery,
        Retention,
        ShadowReport,
        Status,
        Stopped,
        Waiting,
    )
    from enhanced_agent_bus.ports import Gate
    from enhanced_agent_bus.recovery.retry import Retry
    from enhanced_agent_bus.verdict import Pass, Reason, Refusal
    from enhanced_agent_bus.wiring import open_bus
else:  # At run time each name is imported when it is first asked for (PEP 562): `eab --help` needs no bus.
    _ERRORS = (
        *("AgentExists", "AuditUnavailable", "BusClosed", "BusError", "ConfigInvalid", "ConstitutionRejected"),
        *("EngineMissing", "NotDelivered", "Refused", "RequestTimeout", "StoreCorrupt", "StoreLocked"),
        "TransportAway",
    )
    _OUTCOMES = (
        *("Activation", "AgentInfo", "Candidate", "DeadLetter", "Deliberated", "Divergence", "Drained"),
        *("Erasure", "Fact", "LegalHold", "Retention"),
        *("Outcome", "Receipt", "Recovery", "ShadowReport", "NodeInfo", "Status", "Stopped", "Waiting"),
    )
    _MODULES = {
        "Agent": "agent",
        "AgentBus": "bus",
        **dict.fromkeys(_ERRORS, "errors"),
        **dict.fromkeys(("Message", "Priority"), "message"),
        **dict.fromkeys(_OUTCOMES, "outcome"),
        "Gate": "ports",
        "Retry": "recovery.retry",
        "Strategy": "delivery.strategies",
        **dict.fromkeys(("Pass", "Reason", "Refusal"), "verdict"),
        "open_bus": "wiring",
    }

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(_importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value  # the next time it is an ordinary attribute
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
