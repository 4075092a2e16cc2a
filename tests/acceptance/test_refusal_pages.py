"""A page for every refusal code in use, and for nothing else, all in one shape."""

import re
from pathlib import Path

import pytest

PAGES = Path(__file__).resolve().parents[2] / "docs" / "refusals"

# The contract's codes, approval_refused of approvers, and returned between nodes.
CODES = frozenset(
    [
        "malformed",
        "too_large",
        "too_deep",
        "expired",
        "hop_limit",
        "sender_unregistered",
        "identity_unproven",
        "returned",
        "breaker_open",
        "recipient_unknown",
        "replayed",
        "reply_unexpected",
        "constitution_mismatch",
        "policy_denied",
        "policy_undefined",
        "policy_malformed",
        "policy_error",
        "policy_timeout",
        "policy_unavailable",
        "policy_revision_mismatch",
        "obligation_unknown",
        "facts_full",
        "gate_refused",
        "gate_broken",
        "gate_silent",
        "approval_expired",
        "approval_refused",
        "approval_rejected",
        "queue_full",
        "bus_closed",
        "attempts_exhausted",
        "handler_failed",
        "handler_timeout",
        "handler_absent",
        "no_reply",
        "reply_refused",
    ]
)
SECTIONS = ["What happened", "An example", "What to do", "Who is told"]


def test_a_page_for_each_code_and_no_other() -> None:
    """docs/refusals has exactly one page for each code in use."""
    assert {path.stem for path in PAGES.glob("*.md")} - {"README", "index"} == CODES


@pytest.mark.parametrize("code", sorted(CODES))
def test_page_has_the_one_shape(code: str) -> None:
    """Each page says what happened, gives an example, says what to do and who is told."""
    text = (PAGES / f"{code}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {code}\n")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    for section in re.split(r"^## .+$", text, flags=re.MULTILINE)[1:]:
        assert section.strip()
    example = text.split("## An example")[1].split("## What to do")[0]
    assert "```" in example
