"""The reference pages say what the code does: settings with their defaults and bounds, input and decision by field."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest

from enhanced_agent_bus import Message
from enhanced_agent_bus.admission.answer import HOLD_SECONDS_MAX, OBLIGATIONS, _Document, ruling
from enhanced_agent_bus.settings import Section, Settings
from enhanced_agent_bus.verdict import Answer, Refusal, Ruling
from tests.developer import log, small_bus

ROOT: Final = Path(__file__).resolve().parents[2]
PAGES: Final = ROOT / "docs" / "reference"


def tables(page: str) -> dict[str, list[list[str]]]:
    """Heading → the rows of the tables below it, as cells, without the heads and rules of the tables."""
    found: dict[str, list[list[str]]] = {}
    heading, lines = "", [*(PAGES / page).read_text(encoding="utf-8").splitlines(), ""]
    for number, line in enumerate(lines):
        if line.startswith("#"):
            heading = line.lstrip("#").strip()
        elif line.startswith("|") and not lines[number + 1].startswith("|---") and not line.startswith("|---"):
            found.setdefault(heading, []).append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


def toml(value: object) -> str:
    """A default as eab.toml has it."""
    return "none" if value is None else f"`{json.dumps(value)}`"


def allowed(schema: dict[str, Any]) -> str:
    """What a setting may be, in the words of the page."""
    if "description" in schema:
        return str(schema["description"])
    if schema.get("type") == "boolean":
        return "true or false"
    if schema.get("type") == "array":
        return "a list of paths"
    values = [schema["const"]] if "const" in schema else schema.get("enum", [])
    if values:
        return " or ".join(json.dumps(value) for value in values)
    if "maximum" not in schema:
        return "a path"
    low = f"over {schema['exclusiveMinimum']:g}" if "exclusiveMinimum" in schema else f"{schema['minimum']:.0f}"
    return f"{low} to {schema['maximum']:.0f}"


def keys_of(section: type[Section]) -> list[list[str]]:
    """Key, default and bounds of the plain settings of a section."""
    schema = section.model_json_schema()["properties"]
    return [
        [f"`{key}`", toml(info.default), allowed(schema[key])]
        for key, info in section.model_fields.items()
        if not isinstance(info.default, Section)
    ]


def test_every_setting_stands_on_its_page() -> None:
    """docs/reference/settings.md has each setting, in the order of the code, with its default and its bounds."""
    sections = {"At the top": Settings} | {
        f"[{name}]": type(info.default)
        for name, info in Settings.model_fields.items()
        if isinstance(info.default, Section)
    }
    shown = {heading: [row[:3] for row in rows] for heading, rows in tables("settings.md").items()}
    assert shown == {heading: keys_of(section) for heading, section in sections.items()}
    assert all(len(row) == 4 and row[3] for rows in tables("settings.md").values() for row in rows)


# --- input ---------------------------------------------------------------------------------------------------------

SCHEMA: Final[dict[str, Any]] = json.loads((ROOT / "pdp/schema/input.json").read_text())


def example(page: str) -> dict[str, Any]:
    """The first JSON block of a page."""
    found = re.search(r"^```json\n(.*?)^```", (PAGES / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    assert found is not None
    document: dict[str, Any] = json.loads(found[1])
    return document


def kind(field: dict[str, Any]) -> str:
    """The type of a field and the numbers that it can be, in the words of the page."""
    name = str(field.get("type", "any"))
    if "maximum" in field:
        return f"{name}, {field['minimum']} to {field['maximum']}"
    return f"{name}, {field['minimum']} or more" if "minimum" in field else name


def test_the_page_on_input_has_the_fields_of_the_schema() -> None:
    """docs/reference/input.md has a section for each part of the input, and a row for each field.

    With its type, the values that it can have, and whether it is always there.
    """
    expected = {}
    for part, whole in SCHEMA["properties"].items():
        schema = whole.get("items", whole)
        expected[part] = [
            [f"`{name}`", kind(field), "always" if name in schema["required"] else "not always"]
            for name, field in schema["properties"].items()
        ]
    shown = tables("input.md")
    assert {heading: [row[:3] for row in rows] for heading, rows in shown.items()} == expected
    for part, whole in SCHEMA["properties"].items():
        for name, field in whole.get("properties", {}).items():
            (row,) = [row for row in shown[part] if row[0] == f"`{name}`"]
            assert "enum" not in field or re.findall(r"`(\w+)`", row[3]) == field["enum"]


async def test_what_is_always_there_is(tmp_path: Path) -> None:
    """The plainest message has every field that the schema requires, and no other."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", handler=lambda _message: None, tenant="acme")
        await (await desk.send("booker")).outcome(timeout=10)
    (record,) = log(tmp_path / "home", "decision")
    document = record["input"]
    document["message"] |= {"payload": {}, "headers": {}}  # they stand apart from the record
    jsonschema.validate(document, SCHEMA)
    assert set(document) == set(SCHEMA["required"])
    for part, value in document.items():
        if part != "approvals":
            assert set(value) == set(SCHEMA["properties"][part]["required"])


def test_the_example_of_an_input_is_whole_and_valid() -> None:
    """The example on the page has every field, and the schema takes it; its size is that of its payload."""
    shown = example("input.md")
    jsonschema.validate(shown, SCHEMA)
    assert {part: list(value) for part, value in shown.items() if part != "approvals"} == {
        part: list(schema["properties"]) for part, schema in SCHEMA["properties"].items() if part != "approvals"
    }
    assert shown["message"]["size"] == len(json.dumps(shown["message"]["payload"], separators=(",", ":")))


def paths_of(document: dict[str, Any]) -> Iterator[str]:
    """Each field of each part."""
    for part, value in document.items():
        yield from [f"{part}.{field}" for field in value] if isinstance(value, dict) else [part]


async def test_what_the_bus_shows_a_policy_is_what_the_page_says(tmp_path: Path) -> None:
    """The input of a message with everything, as the log has it, has the fields of the example and no others.

    Payload and headers stand apart from the record.
    """
    seen: list[str] = []

    async def passes_on(_message: Message) -> None:
        receipts = await booker.publish("trips", {"trip": 7}, headers={"trace": "t-1"})
        seen.extend(receipt.message_id for receipt in receipts)

    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme", roles=["planner"])
        booker = await bus.register("booker", handler=passes_on, tenant="acme", capabilities=["flights"])
        await bus.register("notes", handler=lambda _message: None, tenant="acme", topics=["trips"])
        await (await desk.send("booker", {"trip": 7})).outcome(timeout=10)
    (record,) = log(tmp_path / "home", "decision", message_id=seen[0])
    shown = example("input.md")
    for document in (shown, record["input"]):
        document["facts"] = dict.fromkeys(document["facts"])
    assert set(paths_of(record["input"])) == set(paths_of(shown)) - {"message.payload", "message.headers"}
    assert record["input"]["cause"]["sender"] == "desk"


# --- decision ------------------------------------------------------------------------------------------------------


#: The parts of a decision, and what the bus reads them as.
SHAPES: Final = {"reasons": "_Reason", "hold": "_Hold", "remember": "_Remember"}


def answered(document: object) -> Ruling | Refusal:
    """What the bus makes of a policy's answer."""
    return ruling(Answer(None, json.dumps(document).encode()))


def test_the_example_of_a_decision_is_whole_and_taken() -> None:
    """The example on the page has every key of every table, and the bus takes it as it is."""
    shown = example("decision.md")
    assert isinstance(answered(shown), Ruling)
    rows = {heading: {row[0].strip("`") for row in rows} for heading, rows in tables("decision.md").items()}
    assert rows["What a policy answers"] == set(shown)
    for part in ("reasons", "hold", "remember"):
        assert rows[part] == {key for entry in shown[part] for key in entry}
    assert rows["obligations"] == {entry["type"] for entry in shown["obligations"]}


def test_the_page_on_decisions_has_what_the_bus_takes() -> None:
    """Every key that the bus reads stands in a table and no other does, with the bounds of its numbers."""
    schema = _Document.model_json_schema()
    shown = {heading: {row[0].strip("`"): row[1:] for row in rows} for heading, rows in tables("decision.md").items()}
    assert set(shown["What a policy answers"]) == set(schema["properties"])
    parts = {part: schema["$defs"][name]["properties"] for part, name in SHAPES.items()}
    for part, fields in parts.items():
        assert set(shown[part]) == set(fields)
    approvers = parts["hold"]["approvers"]
    assert shown["hold"]["approvers"][0] == f"{approvers['minimum']} to {approvers['maximum']}"
    assert f"at most {HOLD_SECONDS_MAX:.1e};".replace("e+0", "e") in shown["hold"]["expires_in"][1]
    scopes = re.findall(r"`(\w+)`", shown["remember"]["scope"][1])
    assert scopes == parts["remember"]["scope"]["enum"]
    for name, form in OBLIGATIONS.items():
        assert re.findall(r"`(\w+)`", shown["obligations"][name][0]) == [
            key for key in form.model_fields if key != "type"
        ]


@pytest.mark.parametrize("part", ["reasons", "hold", "remember", "obligations"])
def test_a_key_that_is_not_on_the_page_is_refused(part: str) -> None:
    """An unknown key at any level is policy_malformed: a misspelt condition must not be ignored."""
    shown = example("decision.md")
    for document in (shown | {"made_up": 1}, shown | {part: [shown[part][0] | {"made_up": 1}]}):
        answer = answered(document)
        assert isinstance(answer, Refusal)
        assert answer.code == "policy_malformed"


@pytest.mark.parametrize(
    "entry",
    [
        {"obligations": [{"type": "handler_timeout"}]},
        {"obligations": [{"type": "handler_timeout", "seconds": "5"}]},
        {"obligations": [{"type": "handler_timeout", "seconds": 0}]},
        {"obligations": [{"type": "deliver_only_to"}]},
        {"obligations": [{"type": ["deliver_only_to"]}]},
        {"obligations": [{}]},
        {"hold": [{"rule": "r", "roles": ["x"], "expires_in": 1e300}]},
        {"hold": [{"rule": "r", "roles": []}]},
        {"remember": [{"scope": "sender", "key": "k", "add": 10**30}]},
        {"remember": [{"scope": "sender", "key": "k", "add": 1, "value": 1}]},
        {"remember": [{"scope": "bus", "key": "k", "add": 1}]},
        {"allow": 1},
        {"allow": "true"},
    ],
)
def test_an_allow_in_another_shape_is_no_allow(entry: dict[str, Any]) -> None:
    """What the tables do not describe is policy_malformed, and neither stops the bus nor gets past it."""
    answer = answered({"allow": True} | entry)
    assert isinstance(answer, Refusal)
    assert answer.code == "policy_malformed"


def test_an_obligation_that_is_not_on_the_page_is_refused() -> None:
    """A condition that the bus cannot keep is no allow; where the answer is no, it does not matter."""
    asked = {"obligations": [{"type": "encrypt", "path": "/a"}]}
    refused = answered({"allow": True} | asked)
    assert isinstance(refused, Refusal)
    assert refused.code == "obligation_unknown"
    assert isinstance(answered({"allow": False} | asked), Ruling)
