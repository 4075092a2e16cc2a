"""A message bus for AI agents: every message is decided by policy before it is delivered, and that can be proved."""

from enhanced_agent_bus.agent import Agent
from enhanced_agent_bus.bus import AgentBus
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
)
from enhanced_agent_bus.message import Message, Priority
from enhanced_agent_bus.outcome import (
    Activation,
    AgentInfo,
    DeadLetter,
    Drained,
    Fact,
    Outcome,
    Receipt,
    Status,
    Waiting,
)
from enhanced_agent_bus.ports import Gate
from enhanced_agent_bus.recovery.retry import Retry
from enhanced_agent_bus.verdict import Pass, Reason, Refusal
from enhanced_agent_bus.wiring import open_bus

__all__ = [
    "Activation",
    "Agent",
    "AgentBus",
    "AgentExists",
    "AgentInfo",
    "AuditUnavailable",
    "BusClosed",
    "BusError",
    "ConfigInvalid",
    "ConstitutionRejected",
    "DeadLetter",
    "Drained",
    "EngineMissing",
    "Fact",
    "Gate",
    "Message",
    "NotDelivered",
    "Outcome",
    "Pass",
    "Priority",
    "Reason",
    "Receipt",
    "Refusal",
    "Refused",
    "RequestTimeout",
    "Retry",
    "Status",
    "StoreCorrupt",
    "StoreLocked",
    "Waiting",
    "open_bus",
]
__version__ = "0.1.0"
