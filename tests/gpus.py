"""Which tests GPUs are needed for, and what these share."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import write_deepspeed_json

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
    json: dict[str, Any] = {"bf16": {"enabled": True}}
    json["zero_optimization"] = {"stage": stage, **zero}
    if stage >= 2:
        json["data_types"] = {"grad_accum_dtype": "fp32"}
    return write_deepspeed_json(folder, stage, **json)
