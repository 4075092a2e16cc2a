"""Settings: `HOME/eab.toml`, then environment `EAB_<SECTION>__<KEY>`, then keywords; later ones win.

Not here: what the settings build (`wiring.py`). An unknown key or variable is an error that names the nearest known
one.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from enhanced_agent_bus.errors import ConfigInvalid, in_words
from enhanced_agent_bus.message import shown

PREFIX = "EAB_"
EMBEDDED = "embedded"
SEVERAL = ("constitution.trust", "transport.nodes")  # of paths
#: Keys that name files, or lists of them, by section.
PATHS = {
    "constitution": ("path", "trust"),
    "policy": ("token_file", "tls_ca", "tls_cert", "tls_key"),
    "audit": ("mask",),
    "transport": ("nodes", "creds_file", "nkey_file", "tls_ca", "tls_cert", "tls_key"),
}
ALONE = "memory://"
#: Variables with our prefix that are not settings; the last one is for this package's own tests.
OTHER_VARIABLES = frozenset({"EAB_HOME", "EAB_FAULTPOINT", "EAB_DEBUG", "EAB_HYPOTHESIS"})

WITNESS_FORMS = ("file:///path", "git:/path", "git+file:///path", "bus:/home", "stdout:", "stderr:", "otlp:")
WITNESS_SCHEMES = tuple(form.partition(":")[0] for form in WITNESS_FORMS)

Seconds = Annotated[float, Field(gt=0, le=86_400 * 366, allow_inf_nan=False)]
SecondsOrNone = Annotated[float, Field(ge=0, le=86_400 * 366, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=100_000_000)]


class Section(BaseModel):
    """One table of eab.toml: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Constitution(Section):
    """Which constitution, whose signature it needs, and how long the one before is still agreed to."""

    path: Path | None = None
    trust: tuple[Path, ...] = ()  # public key files (PEM); with any, only what one of them has signed is taken
    grace_seconds: SecondsOrNone = 0.0


def _engine(value: str) -> str:
    """Raises: ValueError, for anything but "embedded" and the address of an OPA server."""
    if value == EMBEDDED:
        return value
    scheme, _, rest = value.partition("://")
    if scheme == "unix":
        if not rest.startswith("/") or rest.endswith("/") or "\0" in rest:
            raise ValueError("it does not name a socket by its whole path")
        return value
    if scheme not in ("http", "https") or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("it is no address of an OPA server")
    parts = urlsplit(value)
    if "@" in parts.netloc:
        raise ValueError("a token belongs into the file that policy.token_file names, not into the address")
    if not parts.hostname or parts.port == 0:  # urlsplit itself raises ValueError for a port that is none
        raise ValueError("it names no host")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("it has more than a scheme, a host and a port; the bus asks /v1/data/bus/decision there")
    return f"{scheme}://{parts.netloc}"


class Policy(Section):
    """The policy decision point and the decision cache."""

    engine: Annotated[
        str,
        AfterValidator(_engine),
        Field(description='"embedded", "http://host:port", "https://host:port" or "unix:///path"'),
    ] = EMBEDDED
    bundle: Annotated[str, Field(min_length=1, max_length=256, description="a name")] = "eab"
    timeout_seconds: Seconds = 0.25
    workers: Annotated[int, Field(ge=1, le=64)] = 2
    memory_mb: Annotated[int, Field(ge=64, le=65_536)] = 512
    cache_entries: Annotated[int, Field(ge=0, le=10_000_000)] = 10_000
    cache_seconds: Seconds = 300.0
    token_file: Path | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @field_validator("tls_ca", "tls_cert", "tls_key")
    @classmethod
    def _has_a_use(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and not str(info.data.get("engine", "https:")).startswith(("https:", EMBEDDED)):
            raise ValueError("it is for a server at https://, and policy.engine names another")
        if value is not None and info.field_name == "tls_key" and info.data.get("tls_cert") is None:
            raise ValueError("it is the key of policy.tls_cert, which is not given")
        return value


class Limits(Section):
    """What a message, a mailbox and the bus can take."""

    payload_bytes: Annotated[int, Field(ge=2, le=8_388_608)] = 262_144
    depth: Annotated[int, Field(ge=1, le=64)] = 64
    hops: Annotated[int, Field(ge=0, le=10_000)] = 16
    gate_seconds: Seconds = 1.0
    expires_seconds: Seconds = 3600.0
    mailbox: Count = 1000
    inflight: Count = 1000
    dedup_seconds: SecondsOrNone = 600.0


class Delivery(Section):
    """How handlers are run, unless a registration says otherwise."""

    timeout_seconds: Seconds = 30.0
    concurrency: Annotated[int, Field(ge=1, le=10_000)] = 1
    when_full: Literal["wait", "refuse"] = "wait"
    drain_seconds: SecondsOrNone = 10.0


class Recovery(Section):
    """When a failed message is tried again, unless a registration says otherwise."""

    strategy: Literal["exponential", "linear", "immediate", "manual"] = "exponential"
    attempts: Annotated[int, Field(ge=1, le=1000)] = 5
    base_seconds: SecondsOrNone = 0.1
    cap_seconds: SecondsOrNone = 5.0
    breaker_failures: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    breaker_seconds: Seconds = 10.0
    budget_ratio: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 0.2
    budget_per_second: Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)] = 100.0


#: Six months: for so long at least Articles 19 and 26(6) of Regulation (EU) 2024/1689 want logs kept.
KEEP_FLOOR_DAYS: Final = 183.0
Days = Annotated[float, Field(ge=0, le=36_600, allow_inf_nan=False)]


def _witness(value: str) -> str:
    """The address of a witness, its path made absolute. Raises: ValueError."""
    scheme, colon, rest = value.partition(":")
    if not colon or scheme not in WITNESS_SCHEMES:
        near = difflib.get_close_matches(scheme, WITNESS_SCHEMES, n=1, cutoff=0.0)
        raise ValueError(f"{shown(value)} is no witness: did you mean {near[0] if near else 'file'}:?")
    if not value.isprintable():
        raise ValueError(f"{shown(value)} has a character that no address has")
    if scheme in ("stdout", "stderr"):
        if rest:
            raise ValueError(f"{scheme}: has nothing behind it")
        return value
    if scheme == "otlp":
        parts = urlsplit(rest)
        if rest and (parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc):
            raise ValueError("behind otlp: stands nothing, or http://host:4318/v1/logs without a password")
        return value
    path = rest.removeprefix("//")
    if not path or (rest.startswith("//") and not path.startswith("/")):
        raise ValueError(f"{shown(value)} names no path: write {scheme}:///the/whole/path or {scheme}:PATH")
    absolute = f"/{os.path.abspath(path).lstrip('/')}"  # noqa: PTH100 - without `..`; POSIX keeps two slashes in front
    return f"{scheme}:{'//' if rest.startswith('//') else ''}{absolute}"


def _several(value: object) -> object:
    """From the environment: a JSON list, or one address."""
    if not isinstance(value, str):
        return value
    return json.loads(value) if value.startswith("[") else [value] if value else []


class Audit(Section):
    """What the log keeps and for how long, how often it is signed, and who is given what is signed."""

    store_payloads: bool = True
    keep_floor_days: Days = KEEP_FLOOR_DAYS
    keep_payloads_days: Days = 0.0  # for good
    keep_texts_days: Days = 0.0
    checkpoint_seconds: Seconds = 10.0
    checkpoint_records: Count = 1000
    mask: Path | None = None  # Rego that says what is taken out of payloads before they leave the process
    witnesses: Annotated[
        tuple[Annotated[str, AfterValidator(_witness)], ...],
        BeforeValidator(_several),
        Field(max_length=16, description="a list of addresses: " + ", ".join(f'"{one}"' for one in WITNESS_FORMS)),
    ] = ()

    @field_validator("witnesses")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        twice = [one for one in value if value.count(one) > 1]
        if twice:
            raise ValueError(f"{twice[0]} stands there twice")
        return value

    @field_validator("keep_payloads_days", "keep_texts_days")
    @classmethod
    def _over_the_floor(cls, days: float, info: ValidationInfo) -> float:
        floor = info.data.get("keep_floor_days", KEEP_FLOOR_DAYS)
        if 0 < days < floor:
            raise ValueError(
                f"{days:g} days are fewer than audit.keep_floor_days, which is {floor:g}; a lower floor is a weakening"
            )
        return days

    @property
    def is_short(self) -> bool:
        """Whether anything goes sooner than the floor that this package comes with."""
        return any(0 < days < KEEP_FLOOR_DAYS for days in (self.keep_payloads_days, self.keep_texts_days))


def _transport(value: str) -> str:
    """Raises: ValueError, for anything but a network of this process and addresses of NATS servers."""
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("it is no address of a transport")
    if value.startswith(ALONE):
        if not re.fullmatch(r"[A-Za-z0-9_-]{0,64}", value.removeprefix(ALONE)):
            raise ValueError("behind memory:// stands nothing, or a name of letters, digits, _ and -")
        return value
    for one in value.split(","):
        parts = urlsplit(one)
        if parts.scheme not in ("nats", "tls"):
            raise ValueError("it is no address of a transport")
        if not parts.hostname or parts.port == 0:  # urlsplit itself raises ValueError for a port that is none
            raise ValueError("one of its addresses names no host")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError("one of its addresses has more than a scheme, a user, a host and a port")
    return value


def _monitor(value: str) -> str:
    """Raises: ValueError, for anything but addresses of monitoring ports."""
    addresses = value.split(",") if value else []
    for one in addresses:
        parts = urlsplit(one)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or "@" in one:
            raise ValueError("it is no address of a NATS server's monitoring port")
    return ",".join(one.rstrip("/") for one in addresses)


class Transport(Section):
    """What joins this bus to other nodes of it."""

    url: Annotated[
        str,
        AfterValidator(_transport),
        Field(description='"memory://", "memory://NAME", "nats://host:port" or "tls://host:port", several with commas'),
    ] = ALONE
    name: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$", description="letters, digits, _ and -, at most 32")
    ] = "eab"  # of the bus, where a server has several
    lease_seconds: Annotated[float, Field(gt=0, le=3600)] = 10.0
    nodes: tuple[Path, ...] = ()  # public keys of nodes; with any, only these are believed
    creds_file: Path | None = None
    nkey_file: Path | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    replicas: Annotated[int, Field(ge=1, le=5)] = 1
    monitor: Annotated[
        str,
        AfterValidator(_monitor),
        Field(description='"" or "http://host:port", the monitoring port of a server, several with commas'),
    ] = ""

    @field_validator("creds_file", "nkey_file", "tls_ca", "tls_cert", "tls_key", "replicas", "monitor")
    @classmethod
    def _has_a_use(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        if value != field.default and str(info.data.get("url", "nats:")).startswith(ALONE):
            raise ValueError("it is for a NATS server, and transport.url names none")
        if value is not None and info.field_name == "tls_key" and info.data.get("tls_cert") is None:
            raise ValueError("it is the key of transport.tls_cert, which is not given")
        if value is not None and info.field_name == "nkey_file" and info.data.get("creds_file") is not None:
            raise ValueError("transport.creds_file has a key already; leave one of them out")
        return value


class Settings(Section):
    """All settings of one bus, checked."""

    strict: bool = False
    constitution: Constitution = Constitution()
    policy: Policy = Policy()
    limits: Limits = Limits()
    delivery: Delivery = Delivery()
    recovery: Recovery = Recovery()
    audit: Audit = Audit()
    transport: Transport = Transport()


def load_settings(home: Path | None, given: Mapping[str, Any] | None = None) -> Settings:
    """Reads and checks the settings of a home (None: no file). Raises: ConfigInvalid."""
    merged: dict[str, Any] = {}
    if home is not None:
        _merge(merged, _from_file(home / "eab.toml"))
    _merge(merged, _from_environment(os.environ))
    _merge(merged, {key: value for key, value in (given or {}).items() if value is not None})
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise _explained(error) from None


def _from_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except NotADirectoryError:
        remedy = "name a folder, or a path where there is nothing yet"
        raise ConfigInvalid(f"{path.parent} is a file, not a home", remedy=remedy) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{path} is not TOML: {error}", remedy="mend the line named, or remove the file") from None
    except OSError as error:
        raise ConfigInvalid(f"{path} cannot be read: {error.strerror}", remedy="check its permissions") from None
    for name, keys in PATHS.items():  # relative to the file that says them
        section = values.get(name)
        if isinstance(section, dict):
            for key in keys:
                if isinstance(section.get(key), str):
                    section[key] = str(path.parent / section[key])
                elif isinstance(section.get(key), list):
                    section[key] = [str(path.parent / one) if isinstance(one, str) else one for one in section[key]]
    audit = values.get("audit")
    if isinstance(audit, dict) and isinstance(audit.get("witnesses"), list):
        audit["witnesses"] = [_beside(path.parent, one) for one in audit["witnesses"]]
    return values


def _beside(folder: Path, witness: object) -> object:
    """An address with a relative path, from the folder of the file that says it."""
    scheme, colon, rest = witness.partition(":") if isinstance(witness, str) else ("", "", "")
    relative = colon and rest and not rest.startswith("/") and scheme in ("file", "git", "git+file", "bus")
    return f"{scheme}:{folder / rest}" if relative else witness


def _from_environment(variables: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    keys = {_variable(key): key for key in _known_keys() if "." in key or key == "strict"}
    for name, text in variables.items():
        if not name.startswith(PREFIX) or name in OTHER_VARIABLES:
            continue
        key = keys.get(name.upper())
        if key is None:
            near = difflib.get_close_matches(name.upper(), (*keys, *OTHER_VARIABLES), n=1, cutoff=0.0)[0]
            known = f"{near}, for the setting {keys[near]}" if near in keys else near
            raise ConfigInvalid(f"the variable {name} is no setting", remedy=f"did you mean {known}?")
        section, separator, rest = key.partition(".")
        if separator:
            values.setdefault(section, {})[rest] = text.split(os.pathsep) if key in SEVERAL else text
        else:
            values[section] = text
    return values


def _variable(key: str) -> str:
    return PREFIX + key.replace(".", "__").upper()


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            into[key] = {**into[key], **value}
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _explained(error: ValidationError) -> ConfigInvalid:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return ConfigInvalid(
            f"the setting {where} cannot be used: {in_words(first)}", remedy=_what_may_be(first["loc"])
        )
    known = _known_keys()
    near = difflib.get_close_matches(where, known, n=1, cutoff=0.0)
    return ConfigInvalid(f"there is no setting {where}", remedy=f"did you mean {near[0]}?")


def _what_may_be(place: tuple[int | str, ...]) -> str:
    """The default, which can always be written."""
    section = Settings.model_fields[str(place[0])].default
    if not isinstance(section, Section):
        return f"leave it out, or write the default, {json.dumps(section)}"
    if len(place) == 1:
        keys = ", ".join(type(section).model_fields)
        return f"{place[0]} is a table of {keys}"
    default, described = getattr(section, str(place[1])), type(section).model_fields[str(place[1])].description
    if described is not None:
        return f"write {described}"
    return "leave it out" if default is None else f"leave it out, or write the default, {json.dumps(default)}"


def _known_keys() -> list[str]:
    keys: list[str] = []
    for name, info in Settings.model_fields.items():
        section = info.default
        if isinstance(section, Section):
            keys.append(name)
            keys.extend(f"{name}.{key}" for key in type(section).model_fields)
        else:
            keys.append(name)
    return keys
