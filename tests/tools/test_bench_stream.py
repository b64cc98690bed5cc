"""The benchmark of the stream runs, and says what it found."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize("kind", [[], ["--pixels"]], ids=["latents", "pixels"])
def test_the_smallest_comparison_tells_rates_starts_memory_and_bars(
    tmp_path: Path, kind: list[str]
) -> None:
    options = ["--samples", "100", "--side", "8", "--sizes", "1", "--rounds", "1", *kind]
    command = [sys.executable, "tools/bench_stream.py", "--folder", str(tmp_path), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("stream", "webdataset", "memory"):
        assert re.search(rf"^{name} +[\d,]+ +[\d,]+ +[\d.]+x$", done.stdout, re.MULTILINE)
    for name in ("stream", "webdataset", "memory"):
        assert re.search(rf"^{name} +\d+$", done.stdout, re.MULTILINE)
    assert len(re.findall(r"^(?:met   |MISSED)  .*bar", done.stdout, re.MULTILINE)) == 3
    assert not list(tmp_path.iterdir())
