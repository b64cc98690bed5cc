"""Fixtures and helpers that every test may use."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.hookimpl(tryfirst=True)  # before the workers look at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several workers share the tests: a file's stay together, for the fixtures that they
    share, and so do all that use the cluster."""
    for item in items:
        group = "slurm" if item.get_closest_marker("slurm") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Folder of the vectors from the published implementations (REFERENCE_DIR)."""
    folder = Path(os.environ.get("REFERENCE_DIR", ROOT.parent / "shared" / "reference"))
    if not folder.is_dir() and not {"REFERENCE_DIR", "CI"} & os.environ.keys():
        pytest.skip("the published implementations' vectors are not here: set REFERENCE_DIR")
    assert folder.is_dir(), f"no reference vectors in {folder}: set REFERENCE_DIR"
    return folder


def flip_last_bit(file: Path) -> None:
    """What a failing disk does: the size stays, the contents do not."""
    *first, last = file.read_bytes()
    file.write_bytes(bytes([*first, last ^ 1]))
