"""`eab bench`: every row runs on the real parts and says something sound. How fast that is, no test asks."""

import asyncio
import json
import math
import os
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pytest

from enhanced_agent_bus.bench import rows, workload
from enhanced_agent_bus.bench.figures import Figure, at_least, at_most, machine, percentile
from enhanced_agent_bus.bench.house import SMOKE
from enhanced_agent_bus.bench.stations import STATIONS
from tests.support import constitution_digest

pytestmark = pytest.mark.timeout(300)
ROOT: Final = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("row", rows.ROWS)
async def test_each_row_gives_finite_figures_of_every_run_under_its_own_name(row: str, tmp_path: Path) -> None:
    """Every row runs to its end on the real bus, and each of its figures is a number that can be read."""
    told: list[str] = []
    ran = await rows.run([row], SMOKE, place=tmp_path, told=told.append)
    assert told == [row]
    assert ran.figures
    for figure in ran.figures:
        assert figure.row == row
        assert figure.what
        assert figure.values
        assert all(math.isfinite(value) for value in figure.values), figure
        if figure.unit not in ("bytes", "us"):  # what is left over can be nothing or less
            assert all(value > 0 for value in figure.values), figure
    assert not any(os.scandir(tmp_path)), "homes are left behind"


async def test_the_stations_together_are_the_whole_way(tmp_path: Path) -> None:
    """For both ledgers, alone and among many: a time for each station, and their sum is the time of the message."""
    ran = await rows.run_stations(SMOKE, place=tmp_path, told=lambda _: None)
    names = dict.fromkeys(figure.row for figure in ran.figures)
    assert len(names) == 4
    for name in names:
        found = {figure.what: figure for figure in ran.figures if figure.row == name}
        assert [what for what in found if what in STATIONS] == list(STATIONS)
        for message, whole in enumerate(found["send to outcome"].values):
            parts = [found[station].values[message] for station in STATIONS]
            assert all(part >= 0 for part in parts)
            assert sum(parts) == pytest.approx(whole)


def test_the_command_prints_machine_workload_and_figures_as_one_document(tmp_path: Path) -> None:
    """`eab bench --only start --json` is JSON on standard output, and nothing else."""
    command = [
        sys.executable,
        "-m",
        "enhanced_agent_bus",
        "bench",
        "--only",
        "start",
        "--folder",
        str(tmp_path),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    document = json.loads(done.stdout)
    assert document["machine"].keys() >= {"cores", "cpu", "python", "opa"}
    assert "1,000 agents" in document["workload"]
    opened, whole = document["figures"]
    assert opened["target"] == {"side": "at most", "value": 0.3}
    assert opened["reached"] is (opened["median"] <= 0.3)
    assert whole["target"] is None
    for figure in (opened, whole):
        assert figure["runs"] > 1
        assert figure["min"] <= figure["median"] <= figure["max"]


def test_a_row_that_is_none_is_wrong_usage() -> None:
    """The status is 2, and the rows that there are stand in the answer."""
    command = [sys.executable, "-m", "enhanced_agent_bus", "bench", "--only", "speed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "durable" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_target_is_reached_from_its_own_side() -> None:
    """At least and at most take the median, and the border counts as reached."""
    assert Figure("r", "w", "/s", (1, 2, 9), at_least(2)).reached is True
    assert Figure("r", "w", "/s", (1, 2, 9), at_least(2.1)).reached is False
    assert Figure("r", "w", "ms", (1, 2, 9), at_most(2)).reached is True
    assert Figure("r", "w", "ms", (1, 2, 9), at_most(1.9)).reached is False
    assert Figure("r", "w", "ms", (1, 2, 9)).reached is None


def test_a_percentile_is_one_of_the_values() -> None:
    """The median of 1 to 100 lies above half of them, and the 99th above 99."""
    values = [float(number) for number in range(1, 101)]
    assert percentile(values, 0.5) == 51
    assert percentile(values, 0.99) == 100


def test_the_workload_is_the_same_everywhere(tmp_path: Path) -> None:
    """Two generations give the same constitution and the same messages, of about 1 KB with their envelope."""
    one = workload.write_constitution(tmp_path / "one")
    other = workload.write_constitution(tmp_path / "other")
    assert constitution_digest(one) == constitution_digest(other)
    profiles = workload.directory()
    first = list(islice(workload.admitted(profiles), 50))
    assert first == list(islice(workload.admitted(profiles), 50))
    assert all(600 < len(json.dumps(load.payload)) < 1100 for load in first)
    assert all(profiles[load.sender].tenant == profiles[load.recipient].tenant for load in first)


def test_figures_go_into_the_readme_and_the_page(tmp_path: Path) -> None:
    """All of them on the page, in README what is for one screen; what is not the whole changes neither."""
    for name in ("tools/figures.py", "README.md", "docs/reference/performance.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    figures = [Figure(row, f"what {row} measures", "/s", (1.0, 2.0, 4.0), at_least(3)) for row in rows.ROWS]
    document = {
        "machine": machine("1.22.2"),
        "workload": rows.WORKLOAD,
        "figures": [figure.as_json() for figure in figures if figure.row != "nats"],
        "missing": {"nats": "there is no nats-server"},
    }
    command = [sys.executable, str(tmp_path / "tools" / "figures.py")]

    def write(measured: dict[str, Any]) -> tuple[int, str, str]:
        done = subprocess.run(command, input=json.dumps(measured), text=True, capture_output=True, check=False)
        pages = [
            (tmp_path / name).read_text(encoding="utf-8") for name in ("README.md", "docs/reference/performance.md")
        ]
        return done.returncode, pages[0], pages[1]

    before = write({**document, "missing": {}})
    assert before[0] != 0
    assert "what send measures" not in before[1] + before[2]
    status, readme, page = write(document)
    assert status == 0
    assert "| what send measures | 2 /s | 1 to 4 | at least 3: missed |" in readme
    assert "what growth measures" not in readme
    assert "| growth | what growth measures | 1 | 2 | 4 | /s | at least 3 | missed |" in page
    assert "Not measured: `nats`: there is no nats-server." in readme
    assert "## What limits it" in page


def test_every_row_can_be_asked_for_together() -> None:
    """The rows have names of their own and are coroutines."""
    assert all(asyncio.iscoroutinefunction(row) for row in rows.ROWS.values())
