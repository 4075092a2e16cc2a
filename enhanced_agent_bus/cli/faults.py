"""One place where whatever was raised becomes a sentence, a remedy and an exit status (contract §8).

Commands raise; only `main` catches. `EAB_DEBUG=1` shows the traceback as well.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import sys
import traceback
from collections.abc import Mapping
from typing import Any, Final

import typer

from enhanced_agent_bus import errors
from enhanced_agent_bus.authoring.syntax import in_words
from enhanced_agent_bus.cli.program import named
from enhanced_agent_bus.cli.render import echo, safe

DONE: Final = 0
FOUND: Final = 1  # refused, not verified, something found, an unknown id
USAGE: Final = 2  # wrong usage or configuration, no home, a missing file
UNDECIDED: Final = 3  # could not decide or record
INTERRUPTED: Final = 130
TERMINATED: Final = 143
BROKEN_PIPE: Final = 141

#: typer's own errors of usage; it has carried click inside itself since 0.2x, so its base is named through typer.
UsageError: Final[type[Exception]] = typer.BadParameter.__bases__[0]

_STATUS: Final[Mapping[type[errors.BusError], int]] = {
    errors.AgentExists: USAGE,
    errors.ConfigInvalid: USAGE,
    errors.ConstitutionRejected: FOUND,
    errors.NotDelivered: FOUND,
    errors.Refused: FOUND,
}
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


class CliError(Exception):
    """What a command itself finds wrong; `status` is the exit status."""

    def __init__(self, message: str, *, remedy: str = "", code: str = "usage", status: int = USAGE) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.code = code
        self.status = status


def unknown_id(message: str, remedy: str = "") -> CliError:
    """Nothing in the home has this id."""
    return CliError(message, remedy=remedy, code="unknown_id", status=FOUND)


def describe(error: BaseException) -> tuple[int, dict[str, Any]]:
    """The exit status, and {code, message, remedy} with what else is known."""
    if isinstance(error, CliError):
        return error.status, _document(error.code, error.message, error.remedy)
    if isinstance(error, errors.ConstitutionRejected):
        message, details = error.message, [dict(detail) for detail in error.details]
        for detail in details:
            raw = str(detail.get("message", ""))
            detail["message"] = in_words(raw)
            message = message.replace(raw, detail["message"]) if raw else message
        document = _document(error.code, message, error.remedy)
        return FOUND, document | {"reason": error.reason, "details": details}
    if isinstance(error, errors.BusError):
        return _STATUS.get(type(error), UNDECIDED), _document(error.code, error.message, error.remedy)
    if isinstance(error, UsageError):
        return USAGE, _usage(error)
    if isinstance(error, OSError):
        return _describe_os_error(error)
    if isinstance(error, sqlite3.Error):
        remedy = "run `eab doctor`, and `eab audit verify` for what is still whole"
        return UNDECIDED, _document("store_unreadable", f"the database cannot be read: {error}", remedy)
    if isinstance(error, json.JSONDecodeError):  # what is typed or named as a file is read where it is wanted
        remedy = "`eab audit verify` says where; `eab audit export` takes the bytes along as they are"
        return UNDECIDED, _document("store_corrupt", "something that the home keeps as JSON is damaged", remedy)
    if isinstance(error, UnicodeDecodeError):
        return USAGE, _document("not_text", "the file is not UTF-8 text", "save it as UTF-8")
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    remedy = "EAB_DEBUG=1 shows where; `eab status` and `eab audit verify` show that nothing was lost"
    return UNDECIDED, _document("unexpected", f"something unexpected happened ({what})", remedy)


def _document(code: str, message: str, remedy: str) -> dict[str, Any]:
    return {"code": code, "message": message, "remedy": remedy}


def _usage(error: Exception) -> dict[str, Any]:
    context = getattr(error, "ctx", None)
    remedy = f"`{context.command_path} --help` shows the usage" if context is not None else ""
    message = str(error.format_message()) if hasattr(error, "format_message") else str(error)
    return _document("usage", message.rstrip("."), remedy)


def _describe_os_error(error: OSError) -> tuple[int, dict[str, Any]]:
    what = error.strerror or str(error) or type(error).__name__
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    message = f"{where}{what}"
    if error.errno in _FULL:
        return UNDECIDED, _document("store_unavailable", message, "make room on the disk, or mend it, and try again")
    if error.filename is None:
        return UNDECIDED, _document("os_error", message, "EAB_DEBUG=1 shows where")
    remedy = {
        errno.ENOENT: "check the path",
        errno.EACCES: "check who may read and write it",
        errno.EISDIR: "name a file, not a folder",
        errno.ENOTDIR: "name a folder, not a file",
    }.get(error.errno or 0, "")
    return USAGE, _document("file", message, remedy)


def report(error: BaseException, *, as_json: bool, command: str | None = None) -> int:
    """Writes the error to standard error and returns the exit status; `command` is what remedies tell to type."""
    status, document = describe(error)
    document["remedy"] = named(document["remedy"], command)
    if os.environ.get("EAB_DEBUG"):
        traceback.print_exception(error, file=sys.stderr)
    if as_json:
        echo(json.dumps({"error": document}), error=True)
        return status
    echo(f"eab: {safe(document['message'])}", error=True)
    first, *others = document.get("details") or [{}]  # the first is in the message already
    if first.get("hint") and first["hint"] not in document["remedy"]:
        echo(safe(f"     {first['hint']}"), error=True)
    for detail in others:
        echo(_detail_line(detail), error=True)
    if document["remedy"]:
        echo(f"     {safe(document['remedy'])}", error=True)
    return status


def _detail_line(detail: Mapping[str, Any]) -> str:
    where = ":".join(str(part) for part in (detail.get("file"), detail.get("row") or detail.get("line")) if part)
    hint = f" ({detail['hint']})" if detail.get("hint") else ""
    return safe(f"  {where}: {detail.get('message', '')}{hint}" if where else f"  {detail.get('message', '')}{hint}")
