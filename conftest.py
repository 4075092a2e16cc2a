"""What every test may ask for, and how generated tests run.

Each run prints one seed, for Hypothesis and for the tests' own generators: `--hypothesis-seed=N` repeats it.
"""

import os
import secrets
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.nats_server import NatsServer, running
from tests.support import write_constitution

ROOT = Path(__file__).resolve().parent
OPA = ROOT / ".tools" / "bin" / "opa"

# Deadlines and the "too slow" check measure a busy machine, not the code. `make fuzz` chooses the long profile.
for profile, examples in [("short", 50), ("fuzz", 5000)]:
    settings.register_profile(
        profile,
        max_examples=examples,
        deadline=None,
        derandomize=False,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile(os.environ.get("EAB_HYPOTHESIS", "short"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long tests marked `soak` run."""
    parser.addoption("--soak-seconds", type=float, default=3.0, help="how long a soak test runs (default: 3)")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Choose the seed here, where it can be printed, before Hypothesis's plugin reads the option.

    And hear Ctrl-C where whoever started this has told it not to (a script's background job): the tests send it to
    commands, which would not hear it either.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(secrets.randbelow(2**32))


def pytest_report_header(config: pytest.Config) -> str:
    """Say how to repeat this run."""
    return f"seed: --hypothesis-seed={config.option.hypothesis_seed}"


@pytest.fixture(scope="session")
def seed(pytestconfig: pytest.Config) -> int:
    """This run's seed, for tests with a generator of their own."""
    return int(pytestconfig.option.hypothesis_seed)


@pytest.fixture(scope="session")
def soak_seconds(pytestconfig: pytest.Config) -> float:
    """How long a test marked `soak` runs."""
    return float(pytestconfig.option.soak_seconds)


@pytest.fixture(scope="session")
def opa_binary() -> Path:
    """Stock OPA, the version that the worker is built with."""
    if not OPA.is_file():
        pytest.fail(f"{OPA} is missing: `make test` installs it, once")
    return OPA


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """One NATS server a test process, whose messages are on disk when it says so; each test takes a bus of its own."""
    with running(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
def constitution_dir(tmp_path: Path) -> Callable[..., Path]:
    """Make small constitutions: arguments as `write_constitution`, each call in a folder of its own."""
    made: list[Path] = []

    def make(rules: dict[str, str] | None = None, **options: Any) -> Path:
        made.append(tmp_path / f"constitution-{len(made) + 1}")
        return write_constitution(made[-1], rules, **options)

    return make
