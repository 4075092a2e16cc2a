"""`eab audit export` in other people's formats, each read by what its own field reads it with.

The stored bytes (`jsonl`) are in test_cli_audit. OCSF's schema is the published one, compiled by ocsf-json-schema;
CloudEvents are read by CloudEvents' own SDK, OTLP by OpenTelemetry's own messages, Parquet by pyarrow.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from google.protobuf import json_format
from jsonschema import Draft202012Validator
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema
from opentelemetry.proto.logs.v1.logs_pb2 import LogsData

from enhanced_agent_bus.audit.formats import parquet
from enhanced_agent_bus.cli.app import run_command
from tests.newcomer import newcomer, work_in_copy

SECRET = "4111 1111 1111 1111"
LINES = ("opa", "ocsf", "cloudevents", "otel")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the sample has run, and a message with a header and a number that nobody should see."""
    folder = tmp_path_factory.mktemp("begun")
    with newcomer(folder):
        assert run_command(["run", "app.py:build", "--input", "messages.jsonl"]) == 0
        payload = json.dumps({"trip": 7, "card": SECRET})
        send = ["send", "--from", "desk", "--to", "booker", "--id", "paid", "--header", f"auth={SECRET}"]
        assert run_command([*send, "--app", "app.py:build", payload]) == 0
    return folder


@pytest.fixture
def folder(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in."""
    work_in_copy(begun, tmp_path, monkeypatch)
    return tmp_path


def export(format: str, *options: str) -> list[dict[str, Any]]:
    """The lines of an export."""
    assert run_command(["audit", "export", "--format", format, "-o", "out", *options]) == 0
    return [json.loads(line) for line in Path("out").read_bytes().splitlines()]


def stored(folder: Path) -> list[dict[str, Any]]:
    """The records as the database has them."""
    with sqlite3.connect(folder / ".eab" / "bus.db") as database:
        bodies = [body for (body,) in database.execute("SELECT body FROM records ORDER BY seq")]
    database.close()
    return [{"body": body, **json.loads(body)} for body in bodies]


def decisions(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of them that are decisions."""
    return [record for record in records if record["kind"] == "decision"]


def test_opa_reads_a_decision_as_one_of_its_own_events(folder: Path) -> None:
    """One event a decision, with the names and shapes of OPA's own: labels, bundles, path, input, result, timestamp."""
    found, wanted = export("opa"), decisions(stored(folder))
    assert [event["decision_id"] for event in found] == [record["decision_id"] for record in wanted]
    for event, record in zip(found, wanted, strict=True):
        assert event["bundles"] == {"eab": {"revision": "1"}}
        assert (event["path"], event["requested_by"], event["timestamp"]) == (
            "bus/decision",
            record["sender"],
            record["at"],
        )
        assert all(isinstance(value, str) for value in event["labels"].values())
        assert ("result" in event) is (record["code"] in (None, "policy_denied"))
        assert ("error" in event) is ("result" not in event)
        if "result" in event:
            assert event["result"]["allow"] is (record["verdict"] == "allow")
            assert event["input"] == record["input"]
            assert "/input/message/payload" in event["erased"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_ocsf_event_is_valid_under_the_published_schema(folder: Path) -> None:
    """API Activity of OCSF 1.8.0 for every record, and the raw record with its hash in each."""
    schema = OcsfJsonSchemaEmbedded(get_ocsf_schema("1.8.0"))
    plain, controlled = (
        Draft202012Validator(schema.get_class_schema("api_activity", profiles))
        for profiles in ([], ["security_control"])
    )
    records = stored(folder)
    events = export("ocsf")
    assert len(events) == len(records)
    for event, record in zip(events, records, strict=True):
        assert not list((controlled if "profiles" in event["metadata"] else plain).iter_errors(event))
        assert event["raw_data"].encode() == record["body"]
        assert event["raw_data_hash"]["value"] == hashlib.sha256(record["body"]).hexdigest()
        assert event["unmapped"]["leaf_hash"] == hashlib.sha256(b"\0" + record["body"]).hexdigest()
    found = {(event["action"], event["disposition"]) for event in events if "action" in event}
    assert found == {("Allowed", "Allowed"), ("Denied", "Blocked")}
    broken = {key: value for key, value in events[0].items() if key != "time"}
    assert [error.validator for error in plain.iter_errors(broken)] == ["required"]  # the schema does say no


def test_cloudevents_own_sdk_reads_every_event(folder: Path) -> None:
    """Each line is one event of version 1.0, and its data is the stored record byte for byte."""
    records = stored(folder)
    assert len(export("cloudevents")) == len(records)
    for line, record in zip(Path("out").read_bytes().splitlines(), records, strict=True):
        event = JSONFormat().read(CloudEvent, line)
        assert event.get_id() == str(record["seq"])
        assert event.get_source() == f"/{record['bus']}/{record['node']}"
        assert event.get_subject() == record.get("message_id")
        assert event.get_extension("sequence") == f"{record['seq']:016d}"
        assert line.endswith(b',"data":' + record["body"] + b"}")


def test_opentelemetrys_own_messages_read_every_line(folder: Path) -> None:
    """OTLP/JSON: nothing in a line that LogsData does not have; the body is the record, and its time is exact."""
    records = stored(folder)
    assert len(export("otel")) == len(records)
    for line, record in zip(Path("out").read_bytes().splitlines(), records, strict=True):
        data = json_format.Parse(line, LogsData())
        [log] = data.resource_logs[0].scope_logs[0].log_records
        assert log.body.string_value.encode() == record["body"]
        assert log.time_unix_nano % 1_000_000_000 == int(record["at"][20:26]) * 1000
        assert log.event_name == f"eab.{record['kind']}"
        attributes = {pair.key: pair.value for pair in log.attributes}
        assert attributes["eab.seq"].int_value == record["seq"]
        if record["kind"] == "decision":
            assert attributes["eab.verdict"].string_value == record["verdict"]


def test_a_table_has_a_row_a_record_and_a_column_a_field(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers are numbers, times are times, the rest of a record is in it byte for byte; groups are small."""
    monkeypatch.setattr(parquet, "GROUP_ROWS", 7)
    assert run_command(["audit", "export", "--format", "parquet", "-o", "log.parquet"]) == 0
    file = pyarrow.parquet.ParquetFile("log.parquet")
    rows, records = file.read().to_pylist(), stored(folder)
    assert file.num_row_groups == -(-len(records) // 7)
    assert [row["record"].encode() for row in rows] == [record["body"] for record in records]
    names = {"seq", "kind", "verdict", "code", "sender", "decision_id", "state", "eval_us", "duration_us"}
    for row, record in zip(rows, records, strict=True):
        assert {name: row[name] for name in names} == {name: record.get(name) for name in names}
        assert row["at"].isoformat(timespec="microseconds") == record["at"].replace("Z", "+00:00")
        assert (row["input"] is None) is (record.get("input") is None)
        if row["input"] is not None:
            assert json.loads(row["input"]) == record["input"]


def test_a_decision_record_has_no_field_without_a_column(folder: Path) -> None:
    """What a new field of a decision or an outcome is called has to be said in the table too."""
    columns = set(parquet.schema(content=False).names)
    for record in stored(folder):
        if record["kind"] in ("decision", "outcome"):
            assert set(record) - {"body"} <= columns


@pytest.mark.parametrize("format", [*LINES, "jsonl"])
def test_a_part_of_the_log_is_what_its_times_say(format: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--since is in, --until is out, and both are times."""
    records = stored(folder)
    first, last = (decisions(records)[place]["at"] for place in (1, 4))
    found = export(format, "--since", first, "--until", last)
    wanted = [record for record in records if first <= record["at"] < last]
    assert len(found) == len(decisions(wanted) if format == "opa" else wanted)
    assert 0 < len(found) < len(records)
    capsys.readouterr()
    assert run_command(["audit", "export", "--format", format, "--since", "soon", "-o", "never"]) == 2
    assert "'soon' is no time" in capsys.readouterr().err
    assert not Path("never").exists()


def test_a_query_chooses_what_is_exported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same records as `eab audit search` finds with it, and one that means nothing is exit 2."""
    query = "verdict:refuse -rule:same_tenant"
    found = export("jsonl", "--query", query)
    wanted = [record for record in decisions(stored(folder)) if record["verdict"] == "refuse"]
    assert [record["seq"] for record in found] == [
        record["seq"] for record in wanted if record["reasons"][0]["rule"] != "same_tenant"
    ]
    assert found
    assert export("opa", "--query", query, "--payload")
    [access] = [record for record in stored(folder) if record["kind"] == "access"]
    assert access["what"] == f"decisions {query}"
    capsys.readouterr()
    assert run_command(["audit", "export", "--query", "verdit:refuse", "-o", "never"]) == 2
    assert "'verdict'" in capsys.readouterr().err
    assert not Path("never").exists()


@pytest.mark.parametrize("format", [*LINES, "parquet", "jsonl"])
def test_no_payload_and_no_header_is_in_an_export(format: str, folder: Path) -> None:
    """Whatever the format: they stand apart from records."""
    assert run_command(["audit", "export", "--format", format, "-o", "out"]) == 0
    text = Path("out").read_bytes()
    if format == "parquet":
        text = json.dumps(pyarrow.parquet.read_table("out").to_pylist(), default=str).encode()
    assert b"desk/paid" in text
    assert SECRET.encode() not in text
    assert not [record for record in stored(folder) if record["kind"] == "access"]


@pytest.mark.parametrize("format", [*LINES, "parquet"])
def test_with_payload_an_export_has_what_was_decided_on_and_is_recorded(format: str, folder: Path) -> None:
    """Payload, headers and the words of reasons; an access record says so, before the first line is written."""
    assert run_command(["audit", "export", "--format", format, "-o", "out", "--payload"]) == 0
    text = Path("out").read_bytes()
    if format == "parquet":
        text = json.dumps(pyarrow.parquet.read_table("out").to_pylist(), default=str).encode()
    assert text.count(SECRET.encode()) == 2  # in the payload and in a header of the one message
    assert b"globex" in text
    [access] = [record for record in stored(folder) if record["kind"] == "access"]
    assert (access["command"], access["what"]) == ("audit export", "decisions")
    if format == "opa":
        events = [json.loads(line) for line in text.splitlines()]
        paid = next(event for event in events if event["custom"]["message_id"] == "desk/paid")
        assert paid["input"]["message"]["payload"] == {"trip": 7, "card": SECRET}
        assert paid["input"]["message"]["headers"] == {"auth": SECRET}
        assert "erased" not in paid
        denied = next(event for event in events if event.get("result", {}).get("allow") is False)
        assert denied["result"]["reasons"][0]["message"]


def test_what_was_altered_beside_its_record_is_not_exported(folder: Path) -> None:
    """A payload that is not the one that was decided on stands in no export; the event says that it lacks it."""
    with sqlite3.connect(folder / ".eab" / "bus.db") as database:
        database.execute("UPDATE payloads SET body = ?", (b'{"forged":true}',))
    database.close()
    events = export("opa", "--payload")
    assert all("payload" not in event["input"]["message"] for event in events if "input" in event)
    assert all("/input/message/payload" in event["erased"] for event in events if "input" in event)


@pytest.mark.parametrize(
    ("options", "status", "word"),
    [
        (["--format", "jsonl", "--payload", "-o", "out"], 2, "stored bytes"),
        (["--format", "parquet"], 2, "-o FILE"),
        (["--format", "xml"], 2, "'xml'"),
        (["--format", "opa", "-o", "nowhere/out"], 2, "nowhere/out"),
        (["--format", "parquet", "-o", "nowhere/out"], 2, "nowhere/out"),
        (["--format", "parquet", "-o", "/dev/full"], 3, "No space"),
    ],
)
def test_what_cannot_be_written_is_exit_2_and_one_sentence(
    options: list[str], status: int, word: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing was written, nor read: no access record."""
    assert run_command(["audit", "export", *options]) == status
    err = capsys.readouterr().err
    assert word in err
    assert "Traceback" not in err
    assert not Path("out").exists()
    assert not [record for record in stored(folder) if record["kind"] == "access"]


def test_without_pyarrow_the_table_names_its_extra(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything else works without it."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert run_command(["audit", "export", "--format", "parquet", "-o", "out"]) == 2
    assert "opa-agent-bus[parquet]" in capsys.readouterr().err
    assert export("otel")
    assert folder.is_dir()


def test_an_export_reads_and_writes_nothing_else(folder: Path) -> None:
    """The home is byte for byte what it was, and without --json or -o there are only lines."""
    before = {path: path.read_bytes() for path in (folder / ".eab").rglob("*") if path.is_file()}
    for name in (*LINES, "parquet"):
        assert run_command(["audit", "export", "--format", name, "-o", "out"]) == 0
    assert {path: path.read_bytes() for path in (folder / ".eab").rglob("*") if path.is_file()} == before
