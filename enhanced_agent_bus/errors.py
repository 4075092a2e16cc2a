"""What can be raised, and when.

A refusal is an answer, not an exception; it is raised only where the caller asked for that
(`Receipt.raise_for_refusal`, `Agent.request`). The tree:

    BusError                  .code
      Refused                 .receipt      the policy, or an earlier gate, said no
      NotDelivered            .outcome      a request that was accepted and got no reply
      RequestTimeout                        no reply in time
      AuditUnavailable                      nothing can be recorded, so nothing was delivered
      BusClosed                             the bus takes no more messages
      AgentExists                           the id is live, or belongs to another tenant
      EngineMissing                         no policy worker on this machine
      ConstitutionRejected    .reason .details
      ConfigInvalid                         a setting that cannot be
      StoreCorrupt                          the home cannot be trusted
      StoreLocked                           another process has the home
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enhanced_agent_bus.outcome import Outcome, Receipt


#: Of pydantic's errors, by type, in words for people who write JSON or TOML; {…} are the error's own values.
_WORDS: Final[Mapping[str, str]] = {
    "missing": "it is missing",
    "extra_forbidden": "there is no such key",
    "literal_error": "it has to be {expected}",
    "bool_type": "it has to be true or false",
    "bool_parsing": "it has to be true or false",
    "string_type": "it has to be a string",
    "int_type": "it has to be a whole number",
    "int_parsing": "it has to be a whole number",
    "int_from_float": "it has to be a whole number",
    "float_type": "it has to be a number",
    "float_parsing": "it has to be a number",
    "finite_number": "it has to be a number that is not endless",
    "tuple_type": "it has to be a list",
    "list_type": "it has to be a list",
    "model_type": "it has to be an object",
    "model_attributes_type": "it has to be an object",
    "greater_than": "it has to be more than {gt}",
    "greater_than_equal": "it has to be {ge} or more",
    "less_than": "it has to be less than {lt}",
    "less_than_equal": "it has to be {le} or less",
    "too_short": "it needs {min_length} or more items",
    "too_long": "it can have {max_length} items at most",
    "string_too_long": "it can have {max_length} characters at most",
    "string_pattern_mismatch": "it is not written as it has to be ({pattern})",
    "value_error": "{error}",
}


def in_words(found: Mapping[str, Any]) -> str:
    """What one of pydantic's errors says."""
    words = _WORDS.get(str(found["type"]))
    if words is None:
        return str(found["msg"]).removeprefix("Value error, ").replace("Input should be", "it has to be")
    return words.format_map(found.get("ctx") or {})


class BusError(Exception):
    """What happened, to which message, and what to do now."""

    default_code: ClassVar[str] = "error"

    def __init__(self, message: str, *, code: str | None = None, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}. {self.remedy}" if self.remedy else self.message


class Refused(BusError):
    """The message was refused; `receipt` has the code and the reasons."""

    def __init__(self, receipt: Receipt) -> None:
        reason = receipt.reasons[0] if receipt.reasons else None
        detail = f": {reason.message}" if reason and reason.message else ""
        to = f" to {receipt.recipient}" if receipt.recipient else ""  # empty where it is nobody's id
        super().__init__(
            f"message {receipt.message_id}{to} was refused ({receipt.code}){detail}",
            code=receipt.code,
            remedy=reason.remedy if reason else "",
        )
        self.receipt = receipt


class NotDelivered(BusError):
    """A request was accepted and ended without a reply; `outcome` says how, and names the handler's error."""

    def __init__(self, message_id: str, outcome: Outcome, *, code: str, remedy: str = "") -> None:
        error = f" after {outcome.error}" if outcome.error else ""
        super().__init__(
            f"request {message_id} got no reply ({code}); it ended as {outcome.state}{error}", code=code, remedy=remedy
        )
        self.outcome = outcome


class RequestTimeout(BusError, TimeoutError):
    """No reply within the time that the requester gave."""

    default_code = "request_timeout"


class AuditUnavailable(BusError):
    """Nothing can be recorded, so nothing was delivered. Sending again with the same id is safe."""

    default_code = "audit_unavailable"


class TransportAway(BusError):
    """The transport between nodes did not answer, or not in time. What was given to it may have arrived or not."""

    default_code = "transport_away"


class BusClosed(BusError):
    """The bus takes no more messages."""

    default_code = "bus_closed"


class AgentExists(BusError):
    """The id is registered and live, or belongs to another tenant."""

    default_code = "agent_exists"


class EngineMissing(BusError):
    """The policy worker is not on this machine."""

    default_code = "engine_missing"


class ConstitutionRejected(BusError):
    """A constitution did not pass; `reason` is one of contract §3, `details` name file, line and hint."""

    default_code = "constitution_rejected"

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        details: Sequence[Mapping[str, Any]] = (),
        remedy: str = "",
        digest: str | None = None,
        revision: int | None = None,
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.reason = reason
        self.digest = digest  # of what was rejected, where it got so far
        self.revision = revision
        self.details = [dict(detail) for detail in details]


class ConfigInvalid(BusError):
    """A setting is unknown or has a value that it cannot have."""

    default_code = "config_invalid"


class StoreCorrupt(BusError):
    """The home is damaged or incomplete; nothing is opened in its place."""

    default_code = "store_corrupt"


class StoreLocked(BusError):
    """Another process has the home open."""

    default_code = "store_locked"
