"""Fixtures and helpers that every test may use."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from tests.hub_server import Hub

ROOT = Path(__file__).parents[1]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """How several workers share the tests: a file's stay together, for the fixtures that they
    share; so do all of the cluster, as two clusters' jobs would have the same ports."""
    from xdist.scheduler import LoadFileScheduling

    class FilesTogether(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "slurm" if nodeid.startswith("tests/slurm/") else super()._split_scope(nodeid)

    return FilesTogether(config, log)


def pytest_runtest_setup() -> None:
    """Each test, and each file's fixtures, draw the same numbers whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Folder of the vectors from the published implementations (REFERENCE_DIR)."""
    folder = Path(os.environ.get("REFERENCE_DIR", ROOT.parent / "shared" / "reference"))
    if not folder.is_dir() and not {"REFERENCE_DIR", "CI"} & os.environ.keys():
        pytest.skip("the published implementations' vectors are not here: set REFERENCE_DIR")
    assert folder.is_dir(), f"no reference vectors in {folder}: set REFERENCE_DIR"
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Hub"]:
    """An empty hub on this machine, which huggingface_hub asks, with an empty cache."""
    from tests.hub_server import serve, use_hub

    with serve() as server:
        use_hub(server.address, tmp_path / "hub_cache", monkeypatch)
        yield server


def flip_last_bit(file: Path) -> None:
    """What a failing disk does: the size stays, the contents do not."""
    *first, last = file.read_bytes()
    file.write_bytes(bytes([*first, last ^ 1]))
