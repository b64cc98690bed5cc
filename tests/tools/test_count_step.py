"""tools/count_step.py: the counts of an iteration, at every ZeRO stage."""

import json
from pathlib import Path

from tests.conftest import ROOT
from tests.programs import Done, python
from tests.tiny import write_deepspeed_json, write_teacher


def count_step(*arguments: object) -> Done:
    return python("tools/count_step.py", *arguments, folder=ROOT)


def test_counts_are_printed_and_written(tmp_path: Path):
    offload = {
        "stage": 3,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu"},
    }
    ds = write_deepspeed_json(
        tmp_path,
        3,
        bf16={"enabled": True},
        data_types={"grad_accum_dtype": "fp32"},
        zero_optimization=offload,
    )
    out = tmp_path / "counts.json"
    done = count_step(
        *("--config", "edm2-img512-xs-sida", "--micro-batch", 4, "--nodes", 2),
        *("--launch-us", 7, "--json", out, f"teacher={write_teacher(tmp_path / 'teacher')}"),
        *(f"deepspeed={ds}", "objective.adversarial_group=null"),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(out.read_text())
    assert told["micro_batch"] == 4
    assert told["rates"]["launch_us"] == 7
    assert list(told["stages"]) == ["0", "1", "2", "3"]
    work = told["work"]
    for name in ("flop", "nbytes", "kernels"):
        of_all = sum(entry[name] for entry in work)
        expected = told["fixed"][name] + 4 * told["per_sample"][name]
        assert abs(of_all - expected) <= 1e-6 * of_all
    accumulation = 2048 / (4 * 16)
    seconds = told["stages"]["2"]["seconds"]
    kernels = sum(entry["kernels"] for entry in work)
    assert 1 < seconds["launches"] / (accumulation * kernels * 7e-6) < 1.5  # and the update's
    for line in ("generator   teacher forward", "elementwise, reductions", "ZeRO  weights", "7 us"):
        assert line in done.stdout


def test_a_rate_of_nothing_is_refused():
    done = count_step("--config", "edm2-img512-xs-sida", "--tflops", 0)
    assert done.returncode == 2
    assert "argument --tflops: invalid number above 0 value: '0'" in done.stderr


def test_what_is_asked_wrongly_is_one_line():
    done = count_step("--config", "edm2-img512-xs-sidda")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: config: edm2-img512-xs-sidda")
