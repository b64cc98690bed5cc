"""On a GPU: what an iteration makes the host wait for, memory, attention's kernel, and images."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from own_step import OwnStep
from step_measures import synchronisations
from step_setup import write_data, write_teacher
from torch.nn.attention import SDPBackend, sdpa_kernel

from sid_scale import OneStepGenerator
from sid_scale.config.run import load_config
from sid_scale.networks.edm2.architecture import EDM2Architecture
from sid_scale.networks.edm2.sizes import imagenet512
from sid_scale.ranks import Ranks
from tests.conftest import ROOT
from tests.generators.tiny import demo_generator
from tests.gpus import GPUS, bfloat16, needs_cuda, on_gpu
from tests.ranks import run_joined
from tests.tiny import NO_WARM_UP, config, prepare

pytestmark = on_gpu


@needs_cuda
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_no_micro_batch_makes_the_host_wait(tmp_path: Path, stage: int):
    prepare(tmp_path)
    run_joined(1, _waits, tmp_path, stage)


def _waits(ranks: Ranks, folder: Path, stage: int) -> None:
    waits = []
    for micro_batches in (2, 4):
        ds = bfloat16(folder / "bf16", stage)
        run = config(folder, deepspeed=ds, batch_size=4 * micro_batches)
        with OwnStep(run, ranks) as own:
            for _ in range(3):  # DeepSpeed's timers begin at the third update
                own.iterate()
            waits.append(synchronisations(own.iterate))
    more = (waits[1] - waits[0]) / 2
    assert more == 0, f"{more} times in the micro-batches of both updates"


@needs_cuda
@pytest.mark.parametrize("micro_batch", [8, 32])
def test_peak_memory_is_what_the_estimate_says(tmp_path: Path, micro_batch: int):
    words = xs_run(tmp_path, micro_batch)
    run_joined(1, _peak_memory, words, expected_gigabytes(words))


def xs_run(folder: Path, micro_batch: int) -> list[str]:
    """Settings of a run of EDM2-XS with made-up weights and data, two micro-batches an update."""
    write_teacher(folder / "teacher", imagenet512("xs"))
    write_data(folder / "data", folder / "teacher")
    (folder / "run.yaml").write_text("")
    settings = {
        "run_dir": folder / "run",
        "teacher": folder / "teacher",
        "data": folder / "data",
        "deepspeed": "zero2",
        "total_images": 1_000_000,
        "batch_size": 2 * micro_batch,
        "micro_batch": micro_batch,
        "log.samples_every_images": 0,
        **NO_WARM_UP,
    }
    return [str(folder / "run.yaml"), *(f"{key}={value}" for key, value in settings.items())]


def expected_gigabytes(words: list[str]) -> float:
    """What `sid-scale memory` expects PyTorch to hand out: its total without the margin, which is
    for what others hold."""
    command = [sys.executable, "-m", "sid_scale", "memory", "--gpus-per-node", "1", "--config"]
    told = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    total, margin = (
        float(re.search(rf"^ +{name} +([\d.]+) GB", told.stdout, re.MULTILINE)[1])
        for name in ("total", "margin")
    )
    return total - margin


def _peak_memory(ranks: Ranks, words: list[str], expected: float) -> None:
    with OwnStep(load_config(words[0], words[1:]), ranks) as own:
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            own.iterate()
    assert torch.cuda.max_memory_allocated() / 1e9 == pytest.approx(expected, rel=0.15)


ATTENTIVE = EDM2Architecture(16, 4, 10, 64, (1, 2), 1, (16, 8), 64, 64)


def test_attention_can_be_flash_attention_and_computes_the_same():
    device = torch.device("cuda" if GPUS else "cpu")
    by_any_kernel = _attend(device)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # what it cannot take is an error
        by_flash = _attend(device)
    for flash, any_kernel in zip(by_flash, by_any_kernel):
        assert (flash - any_kernel).norm() / any_kernel.norm() < 0.05


def _attend(device: torch.device) -> list[torch.Tensor]:
    """The output of a network in bfloat16 and the gradient of its weights."""
    torch.manual_seed(0)
    network = ATTENTIVE.build(torch.bfloat16).to(device)
    x = torch.randn(4, *ATTENTIVE.sample_shape, device=device)
    denoised = network(x, torch.ones(4, device=device), torch.arange(4, device=device)).denoised
    denoised.square().mean().backward()
    gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
    return [denoised.detach(), torch.cat(gradients)]


# --- generators ---------------------------------------------------------------------------


@needs_cuda
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
