"""What a run will need of each GPU's memory."""

import json
from pathlib import Path

import pytest

from sid_scale.cli import main
from sid_scale.config.run import load_config
from sid_scale.estimate.memory import expected_memory, teacher_architecture
from sid_scale.methods import build_method
from sid_scale.networks.edm2.sizes import imagenet512
from sid_scale.networks.folder import CheckpointError
from sid_scale.zero.settings import read_deepspeed_json
from tests.tiny import ARCHITECTURE, write_deepspeed_json

BF16 = {"bf16": {"enabled": True}}


def memory(tmp_path: Path, stage: int, ranks: int = 1, architecture=ARCHITECTURE, **more):
    ds = {key: more.pop(key) for key in ("bf16", "data_types") if key in more}
    path = write_deepspeed_json(tmp_path, stage, **ds)
    given = {"micro_batch": 2, **more}
    config = load_config("edm2-img512-xs-sida", [f"{key}={value}" for key, value in given.items()])
    method, settings = build_method(config, architecture), read_deepspeed_json(path, 2, 1)
    return expected_memory(method, architecture, config, settings, ranks)


def test_replicated_xxl_is_what_the_published_code_needs(tmp_path: Path):
    """Four networks, two Adams and two gradients of 1.5 billion float32 numbers: 61 GB."""
    told = memory(tmp_path, 0, architecture=imagenet512("xxl"))
    state = told.weights + told.gradients + told.optimizer + told.average + told.teacher
    assert state == pytest.approx(61, rel=0.01)


def test_each_stage_shares_out_more(tmp_path: Path):
    ranks = 8
    one = {stage: memory(tmp_path, stage, **BF16) for stage in (1, 2, 3)}
    many = {stage: memory(tmp_path, stage, ranks, **BF16) for stage in (1, 2, 3)}
    shared = {1: ("optimizer", "average"), 2: ("gradients",), 3: ("weights",)}
    for stage in (1, 2, 3):
        for name in ("optimizer", "average", "gradients", "weights", "teacher"):
            is_shared = any(name in shared[s] for s in range(1, stage + 1))
            expected = getattr(one[stage], name) / (ranks if is_shared else 1)
            assert getattr(many[stage], name) == pytest.approx(expected), (stage, name)
    assert many[1].total > many[2].total
    wide = memory(tmp_path, 2, ranks, **BF16, data_types={"grad_accum_dtype": "fp32"})
    assert wide.gradients == pytest.approx(2 * many[2].gradients)


def test_activations_grow_with_the_micro_batch_and_shrink_with_care(tmp_path: Path):
    size = {"architecture": imagenet512("xs"), **BF16}
    two, four, eight = (memory(tmp_path, 2, micro_batch=n, **size).activations for n in (2, 4, 8))
    assert eight - four == pytest.approx(2 * (four - two), rel=0.01)
    spared = memory(tmp_path, 2, micro_batch=8, activations={"teacher": "checkpoint"}, **size)
    assert 0.6 * eight < spared.activations < 0.8 * eight


def test_the_plan_says_whether_it_fits(tmp_path: Path, capsys: pytest.CaptureFixture):
    place = ["--config", "edm2-img512-xxl-sida", "--nodes", "4"]
    ds = tmp_path / "ds.json"
    ds.write_text(json.dumps({"zero_optimization": {"stage": 3}, **BF16}))
    assert main(["memory", *place, f"deepspeed={ds}"]) == 0
    told = capsys.readouterr().out
    assert "4 nodes x 8 GPUs, ZeRO 3, bfloat16" in told
    assert "batch 2048 = micro-batch 2 x accumulation 32 x 32 GPUs" in told
    assert told.count("(estimate)") == 3
    assert "GB of 80: fits" in told
    assert main(["memory", *place, f"deepspeed={ds}", "--gpu-memory", "16"]) == 1
    assert "DOES NOT FIT" in capsys.readouterr().out
    assert main(["memory", *place, f"deepspeed={ds}", "--gpus-per-node", "7"]) == 2
    assert "no multiple of" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_a_number_of_nodes_that_cannot_be_is_told(number: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        main(["memory", "--config", "edm2-img512-xs-sida", f"--nodes={number}"])
    assert ended.value.code == 2
    assert f"invalid positive number value: '{number}'" in capsys.readouterr().err


def test_a_teacher_that_is_neither_there_nor_published_is_told():
    with pytest.raises(CheckpointError, match="nor is that a published name"):
        teacher_architecture("teachers/mine")
