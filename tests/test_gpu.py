"""On a GPU: the digits in bfloat16, as the demo trains them there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sid_scale import OneStepGenerator
from sid_scale.codecs import open_codec
from sid_scale.demo.prepare import TEACHER, write_digit_shards
from sid_scale.networks.folder import load_network
from tests.conftest import ROOT
from tests.generators.tiny import demo_generator

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
]


def train(run: Path, deepspeed: str | Path, *overrides: str) -> None:
    if not (run / "shards").exists():
        codec = open_codec(load_network(TEACHER).codec, beside=TEACHER)
        write_digit_shards(run / "shards", codec)
    command = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "1"]
    command += ["--module", "sid_scale.train", "--config", "digits", "micro_batch=64"]
    command += [f"run_dir={run}", f"data={run / 'shards'}", f"deepspeed={deepspeed}", *overrides]
    subprocess.run(command, cwd=ROOT, check=True)


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_digits_train_in_bfloat16(tmp_path: Path, name: str):
    train(tmp_path, f"ds_configs/{name}.json", "total_images=3200")
    records = [json.loads(r) for r in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["images_seen"] == 3200
    assert records[-1]["skipped_updates"] == 0
    assert records[-1]["loss/fake_score"] < records[0]["loss/fake_score"] + 100


def test_a_seed_gives_the_same_image_in_any_company_up_to_rounding(tmp_path: Path):
    folder = demo_generator(tmp_path / "g")
    classes, seeds = [0, 1, 2, 3, 0, 1, 2], range(7)
    on_cpu = OneStepGenerator.from_pretrained(folder).generate(classes, seeds)
    generator = OneStepGenerator.from_pretrained(folder, batch_size=3).to("cuda")
    images = generator.generate(classes, seeds)
    assert images.device.type == "cuda"
    alone = torch.cat([generator.generate([c], [s]) for c, s in zip(classes, seeds)])
    for others in (alone.cpu(), on_cpu):
        assert (images.cpu().float() - others.float()).abs().mean() < 1


def test_the_loss_scale_of_float16_is_resumed(tmp_path: Path):
    """DeepSpeed has no float16 on CPUs."""
    half = {"fp16": {"enabled": True}, "zero_optimization": {"stage": 2}}
    (tmp_path / "fp16.json").write_text(json.dumps(half))
    for total in (640, 1280):
        train(tmp_path, tmp_path / "fp16.json", f"total_images={total}")
    state = json.loads((tmp_path / "checkpoints" / "latest" / "state.json").read_text())
    for role in ("generator", "fake_score"):
        assert state["optimizers"][role]["loss_scale"]["cur_iter"] == 20
