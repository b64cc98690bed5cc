"""Hostile files: nothing in them runs, and each ends in one clear error, soon and in little memory.

The files are in `hostile_code.py` and `hostile_sizes.py`, the process that imports them is
`hostile_judge.py`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sid_scale.errors import SidScaleError
from sid_scale.networks.published import read_published
from tests.conftest import ROOT
from tests.networks.edm.published import DDPMPP, random_state, snapshot
from tests.networks.edm.published import tiny as tiny_edm
from tests.networks.edm2.published import tiny
from tests.pickles import hostile_code, hostile_sizes
from tests.pickles.hostile import FILES, dumps
from tests.tiny import tiny_network

pytestmark = pytest.mark.faults

SECONDS = 10  # of CPU time
MEMORY = 1_500_000_000  # bytes, beyond the size of the file
LIVE = [name for name, file in FILES.items() if file.live]
# Files of whole networks, and the names of their weights.
NAMES = {"warm_up": tiny_network().state_dict().keys(), "warm_up_edm": random_state(DDPMPP).keys()}
MODULES = (hostile_code, hostile_sizes)  # importing them fills FILES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All hostile files, NAME.pkl."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, file in FILES.items():
        (folder / f"{name}.pkl").write_bytes(file.make(folder / f"{name}.canary"))
    (folder / "warm_up").write_bytes(dumps({"ema": tiny()}))
    (folder / "warm_up_edm").write_bytes(dumps(snapshot(tiny_edm())))
    return folder


@pytest.fixture(scope="module")
def verdicts(folder: Path) -> dict[str, dict[str, Any]]:
    """What became of each file."""
    return json.loads(python("-m", "tests.pickles.hostile_judge", str(folder)))


def python(*arguments: str) -> str:
    process = subprocess.run(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.returncode == 0
    return process.stdout


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_ends_in_one_clear_error(name: str, folder: Path, verdicts):
    verdict = verdicts[name]
    assert verdict["error"].startswith(str(folder / f"{name}.pkl"))
    assert FILES[name].complaint in verdict["error"]
    assert verdict["error"].isprintable()
    assert verdict["seconds"] < SECONDS
    assert verdict["peak"] < MEMORY + (folder / f"{name}.pkl").stat().st_size
    assert verdict["executed"] == []
    assert not list(folder.glob(f"{name}.canary*"))
    assert not list(folder.glob(f"*{name}.out*"))


def test_there_are_many():
    assert len(FILES) >= 25
    assert len(LIVE) >= 10


def test_pythons_own_pickle_runs_what_is_hidden_in_them(tmp_path: Path):
    """The files are what they claim: the canaries above could have been there."""
    for name in LIVE:
        file = tmp_path / f"{name}.pkl"
        file.write_bytes(FILES[name].make(tmp_path / f"{name}.canary"))
    python("-W", "ignore", "-c", RUN_ALL, str(tmp_path), *LIVE)
    assert [name for name in LIVE if not (tmp_path / f"{name}.canary").exists()] == []


RUN_ALL = """
import contextlib, pathlib, pickle, sys, time
from tests.networks.published import published_code

folder = pathlib.Path(sys.argv[1])
for file in folder.glob("*.pkl"):
    with published_code(), contextlib.suppress(Exception, AssertionError):
        pickle.loads(file.read_bytes())
end = time.monotonic() + 60  # for what was started and not waited for
while time.monotonic() < end and not all((folder / f"{n}.canary").exists() for n in sys.argv[2:]):
    time.sleep(0.05)
"""


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damage_anywhere_is_a_clear_error_or_other_values(data: st.DataObject, folder: Path):
    whole = data.draw(st.sampled_from(sorted(NAMES)))
    contents = bytearray((folder / whole).read_bytes())
    place = data.draw(st.integers(0, len(contents) - 1))
    contents[place : place + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    damaged = folder / "damaged"
    damaged.write_bytes(contents)
    error, names = outcome(damaged)
    assert names == NAMES[whole] or error.startswith(str(damaged))
    assert error.isprintable()


def outcome(file: Path) -> tuple[str, Collection[str]]:
    """What an import says, and the names of the weights that it yields."""
    try:
        return "", read_published(file).state.keys()
    except SidScaleError as error:
        return str(error), ()
