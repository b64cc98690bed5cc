"""Runs to count: small networks, any DeepSpeed JSON."""

from pathlib import Path
from typing import Any

from sid_scale.config.run import load_config
from sid_scale.estimate.report import Plan, make_plan
from tests.tiny import write_deepspeed_json, write_teacher

BF16 = {"bf16": {"enabled": True}}
FLOAT32_GRADIENTS = {"data_types": {"grad_accum_dtype": "fp32"}}


def plan(
    folder: Path,
    stage: int,
    *,
    nodes: int = 1,
    gpus: int = 1,
    teacher: str | None = None,
    ds: dict[str, Any] | None = None,
    **settings: Any,
) -> Plan:
    """A counted run of the tiny teacher, or of a published one by its name."""
    path = write_deepspeed_json(folder, stage, **(ds or {}))
    given = {
        "teacher": teacher or write_teacher(folder / "teacher"),
        "deepspeed": path,
        "micro_batch": 2,
        "objective__adversarial_group": "null",
        **settings,
    }
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in given.items()]
    return make_plan(load_config("edm2-img512-xs-sida", overrides), nodes, gpus)
