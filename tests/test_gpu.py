"""On GPUs: runs at every stage, offloaded, resumed, stopped, and on several over NCCL.

With GPU_TESTS_ON_CPU=1 in the environment those that can run without a GPU do.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from own_step import OwnStep

from sid_scale.demo.prepare import TEACHER, write_digit_shards
from sid_scale.distill.loop import train
from sid_scale.methods import GENERATOR
from sid_scale.networks.folder import NetworkFolder, load_network
from sid_scale.ranks import Ranks
from tests.conftest import ROOT
from tests.gpus import (
    ONE_AND_TWO,
    assert_alike,
    bfloat16,
    gpus2,
    needs_cuda,
    on_gpu,
    records,
    trained,
)
from tests.launches import PATIENCE, start, wait_for, write_slow_run
from tests.ranks import free_port, run_joined
from tests.tiny import config, freezing_generator, prepare, settings

pytestmark = on_gpu

METHODS: dict[str, dict[str, Any]] = {
    "sid": {"method": "sid"},
    "sida": {"method": "sida"},
    "two steps": {"method": "sida", "steps": 2},
    "kl gradient": {
        "method": "sida",
        "objective__gradient": "kl",
        "objective__divergence": "forward_kl",
        "objective__fake_score_updates": 2,
    },
    "gdd": {
        "method": "gdd",
        "warm_up": False,
        "objective__teacher_sigma": 0.3,
        "objective__r1_interval": 2,
        "objective__discriminator__width": 8,
    },
}


# --- whole runs ---------------------------------------------------------------------------


def launch(run: Path, deepspeed: str | Path, *overrides: str, gpus: int = 1) -> None:
    """Trains the digits, started as users start runs."""
    if not (run / "shards").exists():
        write_digit_shards(run / "shards", TEACHER)
    command = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(gpus)]
    command += ["--master_port", str(free_port())]
    command += ["--module", "sid_scale.train", "--config", "digits", f"micro_batch={64 // gpus}"]
    command += [f"run_dir={run}", f"data={run / 'shards'}", f"deepspeed={deepspeed}", *overrides]
    subprocess.run(command, cwd=ROOT, check=True)


@pytest.mark.parametrize("gpus", ONE_AND_TWO)
@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_digits_train_in_bfloat16(tmp_path: Path, name: str, gpus: int):
    launch(tmp_path, f"ds_configs/{name}.json", "total_images=3200", gpus=gpus)
    told = [json.loads(r) for r in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert told[-1]["images_seen"] == 3200
    assert told[-1]["skipped_updates"] == 0
    assert told[-1]["loss/fake_score"] < told[0]["loss/fake_score"] + 100


@pytest.mark.parametrize("method", METHODS)
def test_every_stage_trains_alike(tmp_path: Path, method: str):
    run_joined(1, _every_stage, prepare(tmp_path), METHODS[method])


def _every_stage(ranks: Ranks, folder: Path, method: dict[str, Any]) -> None:
    expected = trained(ranks, folder, "exact", deepspeed=folder / "stage0.json", **method)
    for stage in (0, 1, 2, 3):
        run = {"deepspeed": bfloat16(folder / "bf16", stage), **method}
        assert_alike(trained(ranks, folder, f"run{stage}", **run), expected, tolerance=0.05)


@pytest.mark.parametrize("gpus", ONE_AND_TWO)
def test_frozen_weights_stay_and_the_others_train_alike(tmp_path: Path, gpus: int):
    prepare(tmp_path)
    for stage in (0, 1, 2, 3):
        bfloat16(tmp_path / "bf16", stage)
    run_joined(gpus, _frozen, tmp_path)
    teacher = load_network(tmp_path / "teacher").state
    for stage in (0, 1, 2, 3):
        for name, weight in load_network(tmp_path / f"run{stage}" / "generator").state.items():
            is_frozen = ".conv_res" in name or ".attn_proj" in name
            if name.endswith((".weight", "_gain")):
                assert torch.equal(weight, teacher[name]) == is_frozen, (stage, name)


def _frozen(ranks: Ranks, folder: Path) -> None:
    with freezing_generator("convolutions"):
        expected = trained(ranks, folder, "exact", deepspeed=folder / "stage0.json")
        for stage in (0, 1, 2, 3):
            run = {"deepspeed": folder / "bf16" / f"stage{stage}.json"}
            assert_alike(trained(ranks, folder, f"run{stage}", **run), expected, tolerance=0.05)


@pytest.mark.parametrize(
    ("stage", "what"), [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "param")]
)
def test_what_is_offloaded_trains_alike(tmp_path: Path, stage: int, what: str):
    run_joined(1, _offloaded, prepare(tmp_path), stage, what)


def _offloaded(ranks: Ranks, folder: Path, stage: int, what: str) -> None:
    offload = {f"offload_{what}": {"device": "cpu", "pin_memory": True}}
    runs = {"kept": bfloat16(folder / "kept", stage)}
    runs["offloaded"] = bfloat16(folder / "offloaded", stage, **offload)
    kept, offloaded = (trained(ranks, folder, f"run {k}", deepspeed=v) for k, v in runs.items())
    assert_alike(offloaded, kept, tolerance=0.01)


def activations(how: str) -> dict[str, str]:
    return {f"activations.{name}": how for name in ("generator", "fake_score", "teacher")}


BLOCKS: dict[str, dict[str, Any]] = {
    "checkpoint": activations("checkpoint"),
    "offload": activations("offload"),
    "compile": {"compile_blocks": True},
    "compile and checkpoint": {"compile_blocks": True, **activations("checkpoint")},
}


@pytest.mark.parametrize(
    ("how", "stage"),
    [(how, stage) for how in BLOCKS for stage in (0, 2, 3) if stage < 3 or "compile" not in how],
)
def test_blocks_that_recompute_or_are_compiled_train_alike(tmp_path: Path, how: str, stage: int):
    run_joined(1, _blocks, prepare(tmp_path), stage, BLOCKS[how])


def _blocks(ranks: Ranks, folder: Path, stage: int, how: dict[str, Any]) -> None:
    run = {"deepspeed": bfloat16(folder / "bf16", stage), "dropout": 0.1}
    expected = trained(ranks, folder, "kept", **run)
    assert_alike(trained(ranks, folder, "blocks", **run, **how), expected, tolerance=0.05)


@needs_cuda  # DeepSpeed has no float16 on CPUs
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_float16_trains_and_its_loss_scale_is_resumed(tmp_path: Path, stage: int):
    half = {"fp16": {"enabled": True}, "zero_optimization": {"stage": stage}}
    (tmp_path / "fp16.json").write_text(json.dumps(half))
    for total in (640, 1280):
        launch(tmp_path, tmp_path / "fp16.json", f"total_images={total}")
    state = json.loads((tmp_path / "checkpoints" / "latest" / "state.json").read_text())
    for role in ("generator", "fake_score"):
        assert state["optimizers"][role]["loss_scale"]["cur_iter"] == 20


@pytest.mark.parametrize("gpus", ONE_AND_TWO)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_resumed_run_is_the_same_run_bit_by_bit(tmp_path: Path, stage: int, gpus: int):
    prepare(tmp_path)
    bfloat16(tmp_path / "bf16", stage)
    run_joined(gpus, _resumed, tmp_path, stage)
    whole, parts = (load_network(tmp_path / k / "generator").state for k in ("whole", "parts"))
    for name, weight in whole.items():
        assert torch.equal(parts[name], weight), name


def _resumed(ranks: Ranks, folder: Path, stage: int) -> None:
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False  # it may pick others in another run
    same = {"deepspeed": folder / "bf16" / f"stage{stage}.json", "dropout": 0.1}
    same |= {"log__samples_every_images": 0}
    train(config(folder, run_dir=folder / "whole", **same), ranks)
    for total in (16, 32):
        train(config(folder, run_dir=folder / "parts", total_images=total, **same), ranks)


def test_ctrl_c_in_an_iteration_longer_than_30_s_leaves_a_checkpoint(tmp_path: Path):
    prepare(tmp_path)
    write_slow_run(tmp_path / "slow.py", seconds=18)
    command = [sys.executable, "-m", "sid_scale", "launch"]
    command += [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "1"]
    command += ["--master_port", str(free_port()), "slow.py", "--config", "run.yaml"]
    # Each update takes longer than half of what DeepSpeed's launcher gives to ranks.
    command += settings(tmp_path, log__samples_every_images=0)
    with start(command, tmp_path, PYTHONPATH=str(ROOT)) as process:
        wait_for((tmp_path / "iterating").exists, process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        told, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, told
    assert (tmp_path / "run" / "checkpoints" / "latest").resolve().name == f"{8:012d}"


# --- several GPUs -------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [pytest.param(stage, marks=gpus2) for stage in (0, 1, 2, 3)])
def test_ranks_train_alike_with_and_without_overlap(tmp_path: Path, stage: int):
    prepare(tmp_path)
    for name, zero in _overlaps(stage).items():
        bfloat16(tmp_path / name, stage, **zero)
    for ranks in (1, 2):
        run_joined(ranks, _overlapped, tmp_path, stage)
    alone, *others = (
        records(config(tmp_path, run_dir=tmp_path / f"{name} {ranks}"))
        for name in _overlaps(stage)
        for ranks in (1, 2)
    )
    for other in others:
        assert_alike(other, alone, tolerance=0.05)


def _overlaps(stage: int) -> dict[str, dict[str, Any]]:
    """Settings of ZeRO under which communication and computing do, and do not, overlap; with
    buckets so small that a backward pass fills several."""
    if stage == 0:
        return {"in turns": {}}
    return {
        name: {"overlap_comm": overlap, "reduce_bucket_size": 20_000}
        for name, overlap in (("in turns", False), ("at once", True))
    }


def _overlapped(ranks: Ranks, folder: Path, stage: int) -> None:
    for name in _overlaps(stage):
        run = {"deepspeed": folder / name / f"stage{stage}.json", "micro_batch": 4}
        trained(ranks, folder, f"{name} {ranks.world_size}", **run)


@pytest.mark.faults
@pytest.mark.parametrize("gpus", [pytest.param(2, marks=gpus2)])
def test_an_error_on_one_rank_ends_those_that_wait_for_it(tmp_path: Path, gpus: int):
    with pytest.raises(Exception, match="exit code 1"):
        run_joined(gpus, _fails_on_the_second)


def _fails_on_the_second(ranks: Ranks) -> None:
    if ranks.rank == 1:
        raise ValueError("bad luck")
    torch.distributed.all_reduce(torch.ones(1, device=ranks.device))
    if ranks.device.type == "cuda":
        torch.cuda.synchronize()


# --- averages at stage 3 ------------------------------------------------------------------


@pytest.mark.parametrize("gpus", ONE_AND_TWO)
def test_the_average_swaps_in_and_out_at_stage_3_with_prefetch(tmp_path: Path, gpus: int):
    prepare(tmp_path)
    prefetch = {"stage3_prefetch_bucket_size": 20_000, "stage3_param_persistence_threshold": 64}
    bfloat16(tmp_path / "bf16", 3, overlap_comm=True, **prefetch)
    run_joined(gpus, _swaps, tmp_path)


def _swaps(ranks: Ranks, folder: Path) -> None:
    run = config(
        folder,
        deepspeed=folder / "bf16" / "stage3.json",
        micro_batch=8 // ranks.world_size,
        **{"ema.half_life": 8, "ema.ramp_up": 0, "learning_rate.generator": 1e-2},
    )
    with OwnStep(run, ranks) as own:
        for _ in range(3):
            own.iterate()
        network, ema = own.run.networks[GENERATOR], own.run.ema
        z = torch.randn(4, *own.run.image_shape, generator=torch.Generator().manual_seed(0))
        batch = z.to(ranks.device), torch.ones(4, device=ranks.device), None

        def images() -> torch.Tensor:
            with torch.no_grad():
                return network.module(*batch).denoised

        before = images()
        averaged = ema.gather()
        with ema.applied():
            inside = images()
        assert torch.equal(images(), before)
        if averaged is not None:
            state = {**_buffers(network.module), **averaged}
            dense = NetworkFolder(own.run.architectures[GENERATOR], state)
            expected = dense.build(torch.bfloat16, ranks.device)(*batch).denoised
            error = (inside - expected).abs().max() / expected.abs().max()
            assert error < 0.03
            assert (inside - before).abs().max() / expected.abs().max() > 2 * error


def _buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.cpu() for name, buffer in module.named_buffers()}
