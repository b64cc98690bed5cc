"""DeepSpeed JSONs: the shipped ones are usable, unusable ones are refused with the reason."""

import json
from pathlib import Path

import pytest
import torch

from sid_scale.zero.settings import DeepSpeedConfigError, read_deepspeed_json
from tests.conftest import ROOT

SHIPPED = {
    "cpu": (2, torch.float32, False),
    "zero1": (1, torch.bfloat16, False),
    "zero2": (2, torch.bfloat16, False),
    "zero3": (3, torch.bfloat16, False),
    "zero3_offload": (3, torch.bfloat16, True),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_settings(name: str):
    settings = read_deepspeed_json(ROOT / "ds_configs" / f"{name}.json", 2, 3)
    found = (settings.stage, settings.compute_dtype, settings.offloads_optimizer)
    assert found == SHIPPED[name]
    assert settings.config["train_micro_batch_size_per_gpu"] == 2
    assert settings.config["gradient_accumulation_steps"] == 3
    assert settings.config["gradient_clipping"] == 0  # DeepSpeed's own default would clip


def test_every_shipped_file_is_covered():
    assert {p.stem for p in (ROOT / "ds_configs").iterdir()} == set(SHIPPED)


def test_stage_0_computes_in_bfloat16_on_float32_weights(tmp_path: Path):
    (tmp_path / "ds.json").write_text(json.dumps({"bf16": {"enabled": True}}))
    settings = read_deepspeed_json(tmp_path / "ds.json", 1, 1)
    assert (settings.stage, settings.compute_dtype) == (0, torch.bfloat16)
    assert "bf16" not in settings.config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"train_batch_size": 8}, "sets 'train_batch_size', which the run's YAML decides"),
        ({"optimizer": {}}, "sets 'optimizer'"),
        ({"zero_optimization": {"stage": 4}}, "stage 4; 0 to 3 exist"),
        ({"zero_optimization": None}, "not an object of objects"),
        ([], "not an object of objects"),
        ({"fp16": {"enabled": True}}, "float16 needs loss scaling"),
        (
            {
                "bf16": {"enabled": True},
                "data_types": {"grad_accum_dtype": "fp32"},
                "zero_optimization": {"stage": 1},
            },
            "Use stage 2 or 3",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}},
            "offload_optimizer can go to the CPU",
        ),
        (
            {"zero_optimization": {"stage": 2, "compute_grad_norm": False}},
            "remove compute_grad_norm",
        ),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, config, message: str):
    (tmp_path / "ds.json").write_text(json.dumps(config))
    with pytest.raises(DeepSpeedConfigError, match=message):
        read_deepspeed_json(tmp_path / "ds.json", 1, 1)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DeepSpeedConfigError, match=r"nowhere\.json is neither a file nor"):
        read_deepspeed_json(tmp_path / "nowhere.json", 1, 1)
