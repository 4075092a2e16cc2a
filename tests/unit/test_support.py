"""The maker of small constitutions makes what stock OPA takes, and what the documentation's own line hashes alike."""

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.support import constitution_digest, write_constitution

HASH_LINE = r"find . -type f ! -name .signatures.json | sed 's|^\./||' | LC_ALL=C sort | xargs sha256sum | sha256sum"


def decide(opa: Path, folder: Path, document: dict[str, Any]) -> Any:
    """What stock OPA answers."""
    command: list[str | Path] = [
        opa,
        "eval",
        "-b",
        folder,
        "--stdin-input",
        "--strict-builtin-errors",
        "data.bus.decision",
    ]
    done = subprocess.run(command, input=json.dumps(document), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["result"][0]["expressions"][0]["value"]


def test_stock_opa_checks_and_tests_it(opa_binary: Path, tmp_path: Path) -> None:
    """A constitution with data and tests passes `opa check --strict -b` and `opa test -b`."""
    folder = write_constitution(
        tmp_path,
        {"few": "admit if input.message.size <= data.bus.rules.few.most"},
        data={"few": {"most": 10}},
        tests={"few": 'test_ten if data.bus.rules.few.admit with input as {"message": {"size": 10}}'},
    )
    subprocess.run([opa_binary, "check", "--strict", "-b", folder], check=True)
    subprocess.run([opa_binary, "test", "-b", folder], check=True, capture_output=True)


def test_every_rule_must_admit(opa_binary: Path, tmp_path: Path) -> None:
    """One rule that does not admit is a refusal that names it, with its own words."""
    rules = {
        "one": "admit if is_string(input.message.id)",
        "two": 'admit if input.message.priority < 3\n\ncode := "too_urgent"',
    }
    folder = write_constitution(tmp_path, rules)
    assert decide(opa_binary, folder, {"message": {"id": "a", "priority": 1}})["allow"] is True
    refused = decide(opa_binary, folder, {"message": {"id": "a", "priority": 3}})
    assert refused["allow"] is False
    assert refused["reasons"] == [
        {"rule": "two", "code": "too_urgent", "message": "the rule does not admit this message"}
    ]


def test_what_a_rule_asks_for_is_gathered(opa_binary: Path, tmp_path: Path) -> None:
    """Holds get their rule's name; what is to be remembered and obligations are handed on."""
    rule = """
        admit := true
        hold contains {"approvers": 1, "roles": ["boss"], "expires_in": 60}
        remember contains {"scope": "sender", "key": "spent", "add": 5}
        obligations contains {"type": "redact", "path": "/a"}
    """
    answer = decide(opa_binary, write_constitution(tmp_path, {"asks": rule}), {})
    assert answer["hold"] == [{"rule": "asks", "approvers": 1, "roles": ["boss"], "expires_in": 60}]
    assert answer["remember"] == [{"scope": "sender", "key": "spent", "add": 5}]
    assert answer["obligations"] == [{"type": "redact", "path": "/a"}]


def test_its_digest_is_that_of_the_documented_line(tmp_path: Path) -> None:
    """`constitution_digest` is the line that anyone can type; signatures do not count."""
    folder = write_constitution(tmp_path, files={".signatures.json": "{}"})
    done = subprocess.run(["bash", "-c", HASH_LINE], cwd=folder, capture_output=True, text=True, check=True)
    assert constitution_digest(folder) == done.stdout.split()[0]
