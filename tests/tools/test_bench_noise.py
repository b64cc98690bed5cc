"""The benchmark of noise drawn ahead runs, and says what it found."""

import re
import subprocess
import sys

from tests.conftest import ROOT


def test_the_smallest_comparison_has_a_line_for_each_way() -> None:
    options = ["--micro-batch", "2", "--side", "4", "--device-ms", "1", "--launches", "10"]
    command = [sys.executable, "tools/bench_noise.py", *options, "--batches", "2", "--rounds", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^(waits|launches) +(on demand|ahead) +[\d.]+ +[\d.]+$", done.stdout, re.M)
    assert len(set(lines)) == 4
