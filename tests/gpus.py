"""Which tests GPUs are needed for, and what these share."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sid_scale.config.run import RunConfig
from sid_scale.distill.loop import train
from sid_scale.ranks import Ranks
from tests.tiny import config, write_deepspeed_json

GPUS = torch.cuda.device_count()
ON_CPU = "GPU_TESTS_ON_CPU" in os.environ  # those that can run without a GPU then do

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (GPUS or ON_CPU), reason="there is no GPU here"),
]
needs_cuda = pytest.mark.skipif(not GPUS, reason="there is no GPU here")
gpus2 = [
    pytest.mark.gpus2,
    pytest.mark.skipif(GPUS < 2 and not ON_CPU, reason="there are no two GPUs here"),
]
ONE_AND_TWO = [1, pytest.param(2, marks=gpus2)]


def bfloat16(folder: Path, stage: int, **zero: Any) -> Path:
    """A DeepSpeed JSON for a stage in bfloat16, with settings of ZeRO."""
    settings: dict[str, Any] = {"bf16": {"enabled": True}}
    settings["zero_optimization"] = {"stage": stage, **zero}
    if stage >= 2:
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return write_deepspeed_json(folder, stage, **settings)


def records(run: RunConfig) -> list[dict[str, Any]]:
    lines = (Path(run.run_dir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def trained(ranks: Ranks, folder: Path, name: str, **overrides: Any) -> list[dict[str, Any]]:
    """Records of a run of four iterations on the tiny network."""
    run = config(folder, run_dir=folder / name, log__samples_every_images=0, **overrides)
    train(run, ranks)
    return records(run)


def assert_alike(actual: Sequence[dict], expected: Sequence[dict], tolerance: float) -> None:
    """Losses of two runs, and the gradient of what is not the generator; the generator's own are of
    differences that rounding makes others at first."""
    told = ("loss/fake_score", "loss/discriminator", "loss/generator_gan")
    told += ("grad_norm/fake_score", "grad_norm/discriminator")
    assert len(actual) == len(expected) > 0
    for ours, theirs in zip(actual, expected):
        names = [name for name in theirs if name.startswith(told)]
        assert len(names) >= 2
        assert ours["skipped_updates"] == theirs["skipped_updates"] == 0
        for name in names:
            assert ours[name] == pytest.approx(theirs[name], rel=tolerance), name
