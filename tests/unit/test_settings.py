"""Settings: a file, then the environment, then keywords; and a clear word for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from enhanced_agent_bus.errors import ConfigInvalid
from enhanced_agent_bus.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    import os  # noqa: PLC0415 - this fixture's only

    for name in [name for name in os.environ if name.startswith("EAB_")]:
        monkeypatch.delenv(name)


def home(folder: Path, text: str) -> Path:
    """A home whose eab.toml says this."""
    (folder / "eab.toml").write_text(text)
    return folder


def complaint(folder: Path | None, given: dict[str, object] | None = None) -> ConfigInvalid:
    """The error that these settings are, with something to do."""
    with pytest.raises(ConfigInvalid) as caught:
        load_settings(folder, given)
    assert caught.value.code == "config_invalid"
    assert caught.value.remedy
    return caught.value


def test_defaults_are_those_of_the_documentation(tmp_path: Path) -> None:
    """Without a file, variables or keywords everything is as contract §9 says."""
    settings = load_settings(tmp_path)
    assert settings == load_settings(None) == Settings()
    assert (settings.policy.timeout_seconds, settings.policy.workers, settings.policy.memory_mb) == (0.25, 2, 512)
    limits = settings.limits
    assert (limits.payload_bytes, limits.depth, limits.hops, limits.mailbox) == (262_144, 64, 16, 1000)
    assert (settings.delivery.timeout_seconds, settings.delivery.when_full) == (30, "wait")
    assert (settings.recovery.attempts, settings.recovery.base_seconds, settings.recovery.cap_seconds) == (5, 0.1, 5)
    assert settings.strict is False


def test_later_sources_win_key_by_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A keyword beats a variable, which beats the file; other keys of a section stay as they were."""
    folder = home(tmp_path, "strict = true\n[limits]\nhops = 1\ndepth = 11\nmailbox = 21\n")
    monkeypatch.setenv("EAB_LIMITS__HOPS", "2")
    monkeypatch.setenv("EAB_LIMITS__DEPTH", "12")
    monkeypatch.setenv("EAB_STRICT", "false")
    settings = load_settings(folder, {"limits": {"hops": 3}, "policy": None, "strict": None})
    assert (settings.limits.hops, settings.limits.depth, settings.limits.mailbox) == (3, 12, 21)
    assert settings.strict is False
    assert load_settings(folder, {"strict": True}).strict is True


def test_variables_that_are_no_settings_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EAB_HOME and EAB_FAULTPOINT mean something else; other programs' variables are not ours."""
    for name in ("EAB_HOME", "EAB_FAULTPOINT", "EABLIMITS__HOPS", "LIMITS__HOPS"):
        monkeypatch.setenv(name, "7")
    assert load_settings(tmp_path) == Settings()


def test_a_path_in_the_file_is_relative_to_the_file(tmp_path: Path) -> None:
    """So that a home can be opened from anywhere."""
    assert (
        load_settings(home(tmp_path, '[constitution]\npath = "policies"\n')).constitution.path == tmp_path / "policies"
    )
    absolute = tmp_path / "else"
    assert load_settings(home(tmp_path, f'[constitution]\npath = "{absolute}"\n')).constitution.path == absolute
    assert load_settings(None, {"constitution": {"path": "policies"}}).constitution.path == Path("policies")


@pytest.mark.parametrize(
    ("text", "wrong", "near"),
    [
        ("[limits]\nmailbx = 1\n", "limits.mailbx", "limits.mailbox"),
        ("[polcy]\nworkers = 1\n", "polcy", "policy"),
        ("[policy]\ntimeout = 1\n", "policy.timeout", "policy.timeout_seconds"),
        ("stric = true\n", "stric", "strict"),
        ("[recovery]\nattempt = 1\n", "recovery.attempt", "recovery.attempts"),
    ],
)
def test_an_unknown_key_names_the_nearest(tmp_path: Path, text: str, wrong: str, near: str) -> None:
    """A typo is an error that says what was meant."""
    error = complaint(home(tmp_path, text))
    assert wrong in error.message
    assert near in error.remedy


def test_unknown_keys_are_found_in_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A keyword's typo and a variable's too."""
    assert "limits.hop" in complaint(tmp_path, {"limits": {"hop": 1}}).message
    assert "nonsense" in complaint(tmp_path, {"nonsense": {}}).message
    monkeypatch.setenv("EAB_LIMITS__HOPPS", "1")
    assert "limits.hops" in complaint(tmp_path).remedy


@pytest.mark.parametrize(
    "text",
    [
        "[limits]\nhops = -1\n",
        "[limits]\nhops = 'many'\n",
        "[limits]\nhops = 1.5\n",
        "[policy]\nworkers = 0\n",
        "limits = 3\n",
        "[policy]\ntimeout_seconds = nan\n",
        "[policy]\ntimeout_seconds = inf\n",
        "[policy]\ntimeout_seconds = 0\n",
        "[limits]\ndepth = 65\n",
        "[delivery]\nwhen_full = 'drop'\n",
        "[policy]\nengine = 'none'\n",
        "[limits]\nmailbox = 0\n",
    ],
)
def test_a_value_that_cannot_be_names_its_key(tmp_path: Path, text: str) -> None:
    """Out of range, of another type, not finite: the key is named, and nothing starts."""
    error = complaint(home(tmp_path, text))
    assert error.message.startswith("the setting ")
    assert text.splitlines()[0].strip("[]").split(" ")[0] in error.message


@pytest.mark.parametrize("text", ["[limits\n", "hops = \n", "a = 1\na = 2\n", "\x00"])
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, text: str) -> None:
    """No traceback, and no bus with half of its settings."""
    error = complaint(home(tmp_path, text))
    assert "eab.toml" in error.message
    assert "line" in error.message


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("EAB_POLICY_TIMEOUT", "EAB_POLICY__TIMEOUT_SECONDS"),
        ("EAB_POLICY_TIMEOUT_SECONDS", "EAB_POLICY__TIMEOUT_SECONDS"),
        ("EAB_LIMITS__HOPPS", "EAB_LIMITS__HOPS"),
        ("EAB_STRIKT", "EAB_STRICT"),
        ("EAB_HOM", "EAB_HOME"),
        ("EAB_POLICY", "EAB_POLICY__"),
        ("EAB_", "EAB_"),
    ],
)
def test_a_variable_that_is_no_setting_is_never_passed_over(
    name: str, near: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit that was meant and is not in force would be found out too late."""
    monkeypatch.setenv(name, "1")
    error = complaint(tmp_path)
    assert name in error.message
    assert near in error.remedy


def test_a_home_that_is_a_file_is_called_one(tmp_path: Path) -> None:
    """Not a settings file that cannot be read."""
    (tmp_path / "afile").write_text("")
    assert complaint(tmp_path / "afile").message == f"{tmp_path / 'afile'} is a file, not a home"


def test_the_remedy_for_a_value_says_what_may_be_written(tmp_path: Path) -> None:
    """The default, or the keys of a table; no page that may not be at hand."""
    assert "0.25" in complaint(home(tmp_path, "[policy]\ntimeout_seconds = 0\n")).remedy
    assert '"wait"' in complaint(home(tmp_path, "[delivery]\nwhen_full = 'drop'\n")).remedy
    assert "mailbox" in complaint(home(tmp_path, "limits = 3\n")).remedy
    assert "false" in complaint(home(tmp_path, "strict = 'perhaps'\n")).remedy
    assert "null" not in complaint(home(tmp_path, "[constitution]\npath = 3\n")).remedy


def test_a_file_that_cannot_be_read_is_no_empty_one(tmp_path: Path) -> None:
    """Bytes that are no UTF-8, or a folder in its place."""
    (tmp_path / "eab.toml").write_bytes(b"\xff\xfe")
    complaint(tmp_path)
    (tmp_path / "eab.toml").unlink()
    (tmp_path / "eab.toml").mkdir()
    complaint(tmp_path)


def test_the_files_of_an_opa_server_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    """Token and certificates, like the constitution."""
    text = '[policy]\nengine = "https://opa:8181/"\ntoken_file = "t"\ntls_ca = "a"\ntls_cert = "c"\ntls_key = "/k"\n'
    policy = load_settings(home(tmp_path, text)).policy
    assert policy.engine == "https://opa:8181"
    assert (policy.token_file, policy.tls_ca, policy.tls_cert) == (tmp_path / "t", tmp_path / "a", tmp_path / "c")
    assert policy.tls_key == Path("/k")
    assert load_settings(None, {"policy": {"token_file": "t"}}).policy.token_file == Path("t")


@pytest.mark.parametrize(
    "address",
    [
        "embedded",
        "http://localhost:8181",
        "http://[::1]:8181",
        "https://opa.example.org",
        "unix:///run/opa.sock",
        "unix:///run/my opa.sock",
    ],
)
def test_addresses_of_engines(address: str) -> None:
    """A worker of our own, a port, a socket."""
    assert load_settings(None, {"policy": {"engine": address}}).policy.engine == address


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("", "no address"),
        ("opa", "no address"),
        ("opa:8181", "no address"),
        ("HTTP//opa", "no address"),
        ("tcp://opa", "no address"),
        ("http://opa 1:8181", "no address"),
        ("http://opa\n.evil", "no address"),
        ("http://", "no host"),
        ("http://:8181", "no host"),
        ("http://opa:0", "no host"),
        ("http://opa:x", "ort"),
        ("http://opa:99999", "ort"),
        ("http://[::1", "IPv6"),
        ("http://opa/v1", "more than a scheme"),
        ("http://opa?x", "more than a scheme"),
        ("http://user:secret@opa", "policy.token_file"),
        ("unix://opa.sock", "whole path"),
        ("unix:///", "whole path"),
        ("unix:opa.sock", "no address"),
    ],
)
def test_an_address_that_is_none_is_refused_with_what_is_wrong(address: str, why: str) -> None:
    """And with every form that there is; what may be a password is not repeated."""
    error = complaint(None, {"policy": {"engine": address}})
    assert "policy.engine" in error.message
    assert why in error.message
    assert "unix:///path" in error.remedy
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    ("policy", "wrong"),
    [
        ({"engine": "http://opa:8181", "tls_ca": "a"}, "policy.tls_ca"),
        ({"engine": "unix:///opa", "tls_cert": "c"}, "policy.tls_cert"),
        ({"engine": "https://opa", "tls_key": "k"}, "policy.tls_key"),
        ({"bundle": ""}, "policy.bundle"),
    ],
)
def test_tls_without_a_use_is_an_error(policy: dict[str, str], wrong: str) -> None:
    """Who names a certificate thinks that it is used."""
    assert wrong in complaint(None, {"policy": policy}).message
