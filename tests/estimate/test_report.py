"""`sid-scale memory`: what a run will need, in lines to read."""

from pathlib import Path

import pytest

from sid_scale.cli import main
from sid_scale.config.run import load_config
from sid_scale.estimate.report import DINOV2, INCEPTION, VAE, described_teacher, evaluation_bytes
from sid_scale.networks.folder import CheckpointError
from tests.tiny import write_deepspeed_json, write_teacher


def test_the_plan_says_whether_it_fits(tmp_path: Path, capsys: pytest.CaptureFixture):
    offload = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    bf16 = {"bf16": {"enabled": True}}
    ds = write_deepspeed_json(tmp_path, 2, **bf16, zero_optimization=offload)
    teacher = write_teacher(tmp_path / "teacher")
    place = ["memory", "--config", "edm2-img512-xxl-sida", "--nodes", "4", f"teacher={teacher}"]
    assert main([*place, f"deepspeed={ds}"]) == 0
    told = capsys.readouterr().out
    assert "4 nodes x 8 GPUs, ZeRO 2, bfloat16" in told
    assert "batch 2048 = micro-batch 32 x accumulation 2 x 32 GPUs" in told
    assert told.count("(estimate)") == 2
    assert "GB of 80: fits" in told
    assert "(most in: generator update, " in told
    assert "memory of each node: " in told
    assert "optimizer, average" in told
    assert "to and from its node's memory" in told
    assert "images a second" in told
    assert "100,000,000 images are" in told
    assert "assumed: 400 TFLOP/s" in told
    assert main([*place, f"deepspeed={ds}", "--gpu-memory", "0.5"]) == 1
    assert "DOES NOT FIT: take, under activations, generator: checkpoint" in capsys.readouterr().out
    assert main([*place, f"deepspeed={ds}", "--gpus-per-node", "7"]) == 2
    assert "no multiple of" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_a_number_of_nodes_that_cannot_be_is_told(number: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        main(["memory", "--config", "edm2-img512-xs-sida", f"--nodes={number}"])
    assert ended.value.code == 2
    assert f"invalid positive number value: '{number}'" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-4", "nan", "inf", "much"])
def test_memory_that_no_gpu_has_is_told(number: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        main(["memory", "--config", "edm2-img512-xs-sida", f"--gpu-memory={number}"])
    assert ended.value.code == 2
    assert f"invalid number above 0 value: '{number}'" in capsys.readouterr().err


def test_blocks_that_are_not_there_are_told_with_the_setting(capsys: pytest.CaptureFixture):
    assert main(["memory", "--config", "edm2-img512-xs-sida", "activations.generator=[7]"]) == 2
    told = capsys.readouterr().err
    assert "error: activations.generator: EDM2 has no blocks of resolution 7" in told


def test_a_teacher_that_is_neither_there_nor_published_is_told():
    with pytest.raises(CheckpointError, match="nor is that a published name"):
        described_teacher("teachers/mine")


def test_detectors_and_the_vae_are_counted_where_they_are_used(tmp_path: Path):
    vae, identity = {"kind": "vae"}, {"kind": "identity"}

    def told(codec: dict[str, str], *overrides: str) -> float:
        return evaluation_bytes(load_config("edm2-img512-xs-sida", overrides), codec)

    no_samples = "log.samples_every_images=0"
    assert told(identity) == 0
    assert told(vae) == VAE
    assert told(vae, no_samples) == 0
    evaluated = (no_samples, "evaluation.every_images=1000")
    assert told(vae, *evaluated) == VAE + INCEPTION
    assert told(vae, *evaluated, "evaluation.metrics=[fid, fd_dinov2]") == VAE + INCEPTION + DINOV2
    assert told(vae, *evaluated, "evaluation.metrics=[fd_dinov2]") == VAE + DINOV2
