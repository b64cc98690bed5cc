"""The cluster that the tests beside this share."""

import os
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, missing_programs


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes, for all tests."""
    missing = missing_programs()
    if missing and "CI" not in os.environ:
        pytest.skip(f"no SLURM here: {', '.join(missing)} missing")
    assert not missing, f"{', '.join(missing)} missing: bash tools/test.sh installs them as root"
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
    assert cluster.processes() == []


@pytest.fixture
def cluster(nodes: Cluster) -> Iterator[Cluster]:
    """The nodes, idle before and after."""
    yield nodes
    nodes.cancel_all()
    nodes.wait(lambda: set(nodes.node_states().values()) == {"IDLE"}, "idle nodes")
