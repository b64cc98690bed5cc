"""DeepSpeed JSONs: the shipped ones are usable, unusable ones are refused with the reason."""

import json
import re
from pathlib import Path

import pytest
import torch
from deepspeed.utils.config import get_timers_config

from sid_scale.zero.keys import KEYS, REFUSED
from sid_scale.zero.settings import DeepSpeedConfigError, read_deepspeed_json
from tests.conftest import ROOT

SHIPPED = {
    "cpu": (2, torch.float32, False),
    "zero2": (2, torch.bfloat16, False),
    "zero2_fp32": (2, torch.float32, False),
    "zero2_fp16": (2, torch.float16, False),
    "zero2_24gb": (2, torch.bfloat16, False),
    "zero2_offload": (2, torch.bfloat16, True),
    "zero2_slow_network": (2, torch.bfloat16, False),
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
    assert {p.stem for p in (ROOT / "ds_configs").glob("*.json")} == set(SHIPPED)


def test_the_readme_has_every_value_with_its_reason():
    told: dict[str, dict] = {name: {} for name in SHIPPED}
    for line in (ROOT / "docs" / "deepspeed.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `") and len(cells) == 4:
            key, value, files, reason = cells
            assert reason
            for name in re.findall(r"`(\w+)`", files):
                told[name][key.strip("`")] = json.loads(value.strip("`"))
    shipped = {
        name: json.loads((ROOT / "ds_configs" / f"{name}.json").read_text()) for name in SHIPPED
    }
    assert told == {name: dict(_flat(settings)) for name, settings in shipped.items()}


def _flat(settings: dict, prefix: str = ""):
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


@pytest.mark.parametrize("name", SHIPPED)
def test_no_timer_waits_for_the_device(name: str):
    settings = read_deepspeed_json(name, 1, 1)
    assert not get_timers_config(settings.config).enabled


def test_gradients_are_summed_over_ranks_in_float32_unless_the_json_has_another_dtype(
    tmp_path: Path,
):
    for given, wanted in ((None, "fp32"), ("bf16", "bf16")):
        config = {"bf16": {"enabled": True}, "communication_data_type": given}
        (tmp_path / "ds.json").write_text(json.dumps(config))
        settings = read_deepspeed_json(tmp_path / "ds.json", 1, 1)
        assert settings.config["communication_data_type"] == wanted
    assert read_deepspeed_json("zero2", 1, 1).config["communication_data_type"] == "fp32"


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
        ({"zero_optimization": None}, "zero_optimization: expected an object"),
        ([], "not an object"),
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
        ({"gradient_clipping": "auto"}, 'gradient_clipping is "auto", which only Hugging'),
        ({"bf16": {"enabled": "auto"}}, 'bf16.enabled is "auto"'),
        ({"zero_optimisation": {"stage": 3}}, "did you mean 'zero_optimization'"),
        ({"zero_optimization": {"reduce_bucket": 5e8}}, "did you mean 'reduce_bucket_size'"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"devise": "cpu"}}},
            "zero_optimization.offload_param.devise; did you mean 'device'",
        ),
        ({"data_types": {"grad_accum": "fp32"}}, "did you mean 'grad_accum_dtype'"),
        ({"data_types": {"grad_accum_dtype": "float"}}, "'float' is none of bf16, fp16, fp32"),
        ({"bf16": True}, 'bf16: expected an object, got True; write {"enabled": true}'),
        ({"fp16": {"enabled": 1}}, "fp16.enabled: expected true or false"),
        ({"bf16": {"loss_scale": 0}}, "bf16.loss_scale: it belongs to fp16"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "both bf16 and fp16"),
        ({"zero_optimization": {"reduce_bucket_size": "many"}}, "reduce_bucket_size: input should"),
        ({"zero_optimization": {"strict": True}}, "unknown key zero_optimization.strict"),
        ({"zero_optimization": {"cpu_offload": True}}, 'use "offload_optimizer"'),
        ({"gradient_clipping": "1"}, "gradient_clipping: expected a number"),
        ({"gradient_clipping": -1}, "gradient_clipping: -1 is below 0"),
        ({"gradient_clipping": float("nan")}, "NaN is no number"),
        ({"steps_per_print": 0}, "steps_per_print: 0 is below 1"),
        ({"gradient_predivide_factor": 0}, "gradient_predivide_factor: 0 is not above 0"),
        ({"zero_optimization": {"round_robin_gradients": True}}, "in the network's order; remove"),
        (
            {"zero_optimization": {"zero_quantized_nontrainable_weights": True}},
            "weights that are frozen stay as they are, to the last bit; remove",
        ),
        ({"fp16": {"initial_scale_power": 4000}}, "4000 is no whole number from 0 to 60"),
        ({"fp16": {"auto_cast": True}}, "sets fp16.auto_cast"),
        ({"a\nb": 1}, r"unknown key 'a\\nb'"),
        ({"stage": 3}, "unknown key stage; it belongs to zero_optimization"),
        ({"grad_accum_dtype": "fp32"}, "unknown key grad_accum_dtype; it belongs to data_types"),
        (
            {"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}},
            "sets bf16.bf16_master_weights_and_grads, but .* float32 here",
        ),
        (
            {"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}},
            "offload_optimizer needs ZeRO stage 1 or more, and stage is 0",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            "offload_param needs ZeRO stage 3 or more",
        ),
        ({"timers": {"throughput": {}}}, "sets 'timers', which has no use.*remove it"),
        (
            {
                "zero_optimization": {
                    "stage": 3,
                    "offload_optimizer": {"device": "cpu", "super_offload": True},
                }
            },
            "super_offload brings an optimizer of its own; remove it",
        ),
        (
            {"zero_force_ds_cpu_optimizer": True},
            "sets 'zero_force_ds_cpu_optimizer', but Adam here is PyTorch's",
        ),
        ({"wandb": {"enabled": True}}, "sets 'wandb'.*remove it"),
        ({"wall_clock_breakdown": True}, "sets 'wall_clock_breakdown'.*remove it"),
        ({"flops_profiler": {"enabled": True}}, "sets 'flops_profiler'.*remove it"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, config, message: str):
    (tmp_path / "ds.json").write_text(json.dumps(config))
    with pytest.raises(DeepSpeedConfigError, match=message):
        read_deepspeed_json(tmp_path / "ds.json", 1, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read .*ds.json: Expecting value"),
        ('{"bf16": {}, "bf16": {}}', "it has 'bf16' twice"),
        ("[" * 100_000, "cannot read .*recursion"),
    ],
)
def test_what_is_no_json_is_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(DeepSpeedConfigError, match=message):
        read_deepspeed_json(tmp_path / "ds.json", 1, 1)


def test_a_mark_of_byte_order_is_read_over(tmp_path: Path):
    (tmp_path / "ds.json").write_text("\ufeff{}")
    assert read_deepspeed_json(tmp_path / "ds.json", 1, 1).stage == 0


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DeepSpeedConfigError, match=r"nowhere\.json is neither a file nor"):
        read_deepspeed_json(tmp_path / "nowhere.json", 1, 1)


def test_what_is_switched_off_is_left_out(tmp_path: Path):
    off = {"wall_clock_breakdown": False, "wandb": {"enabled": False}}
    (tmp_path / "ds.json").write_text(json.dumps(off))
    assert not off.keys() & read_deepspeed_json(tmp_path / "ds.json", 1, 1).config.keys()


def test_every_section_of_deepspeed_is_known():
    """A key that DeepSpeed reads is either used here or refused with the reason."""
    from deepspeed.runtime import config

    source = Path(config.__file__).read_text()
    read = set(re.findall(r"param_dict\.get\(['\"](\w+)['\"]", source))
    read |= config._REMOVED_TOP_LEVEL_CONFIG_KEYS.keys()
    read |= {
        getattr(config, name)
        for name in re.findall(r"get_scalar_param\(\s*param_dict,\s*([A-Z_]+)", source)
    }
    assert read - KEYS.keys() - REFUSED.keys() == set()
