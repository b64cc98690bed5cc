"""`tools/bench_evaluate.py`: the figures add up."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.distributed
def test_rates_waiting_and_the_ratio_are_told():
    words = ["--images", "32", "--alone", "4", "--rounds", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "bench_evaluate.py"), *words],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout[done.stdout.index("{\n") :])
    rates = told["images_per_second"]
    stages = sum(1 / rates[stage] for stage in ("sampling", "decoding", "features"))
    assert rates["all"] <= 1.01 / stages
    ratio = rates["generated_and_decoded"] / rates["generated_and_decoded_one_at_a_time"]
    assert told["ratio_to_one_at_a_time"]["median"] == pytest.approx(ratio, rel=0.02)
    assert len(told["seconds_waiting_by_rank"]) == 1
