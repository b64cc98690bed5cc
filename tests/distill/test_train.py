"""Whole runs, started as users start them or through `train` on real ranks."""

import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from sid_scale import OneStepGenerator
from sid_scale.config.run import load_config
from sid_scale.distill.consolidate import consolidate
from sid_scale.distill.loop import DivergedError, train
from sid_scale.methods import sid
from sid_scale.networks.folder import load_network, save_network
from tests.conftest import ROOT
from tests.data.shards import put_class
from tests.launches import PATIENCE, start, wait_for
from tests.ranks import free_port, joined, run_ranks
from tests.tiny import ARCHITECTURE, config, prepare, settings, write_deepspeed_json

pytestmark = pytest.mark.distributed


@pytest.fixture
def launch():
    """`deepspeed --module sid_scale.train` on two ranks; what is left of it is killed."""
    started = []

    def launch(folder: Path, *arguments: str) -> subprocess.Popen:
        launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2"]
        command = [*launcher, "--master_port", str(free_port()), "--module", "sid_scale.train"]
        started.append(start([*command, "--config", str(folder / "run.yaml"), *arguments]))
        return started[-1]

    yield launch
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=PATIENCE)
    return output


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_launched_run_leaves_what_scripts_rely_on(tmp_path: Path, launch):
    prepare(tmp_path)
    process = launch(tmp_path, *settings(tmp_path))
    output = finish(process)
    assert process.returncode == 0, output
    run = tmp_path / "run"
    assert load_config(run / "config.yaml") == config(tmp_path)
    environment = json.loads((run / "environment.json").read_text())
    assert (environment["ranks"], environment["zero_stage"]) == (2, 2)
    assert environment["torch"] == torch.__version__

    told = records(run)
    assert [r["images_seen"] for r in told] == [8, 16, 24, 32]
    for record in told:
        for name in ("loss/fake_score", "loss/discriminator", "loss/generator_sid",
                     "loss/generator_gan", "grad_norm/generator", "grad_norm/fake_score",
                     "logits/real", "logits/generated", "images_per_second",
                     "learning_rate/generator", "memory_gb", "tflops_per_device", "mfu",
                     "data_wait_seconds", "pause_seconds"):  # fmt: skip
            assert isinstance(record[name], float), name
        assert record["skipped_updates"] == 0
        assert any(name.startswith("sid_loss_by_sigma/") for name in record)
    assert list((run / "tensorboard").iterdir())
    assert [p.name for p in sorted((run / "samples").iterdir())] == [
        f"{n:012d}.png" for n in (0, 16, 32)
    ]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [
        *(f"{n:012d}" for n in (16, 32)),
        "latest",
    ]
    generator = load_network(run / "generator")
    assert generator.provenance["images_seen"] == 32
    assert generator.provenance["method"] == "sida"
    assert generator.architecture.logvar_channels == 0
    assert generator.provenance["settings"]["batch_size"] == 8
    assert sorted(p.name for p in (run / "generator").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "samples.png",
    ]
    assert "| images seen | 32 |" in (run / "generator" / "README.md").read_text()
    images = OneStepGenerator.from_pretrained(run / "generator").generate([0, 3], [1, 2])
    assert images.shape == (2, 3, 8, 8)
    assert "img/s/device" in output


def kill_command(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGTERM)  # `deepspeed` itself, which does not pass it on


def press_ctrl_c(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: everyone in the foreground


@pytest.mark.faults
@pytest.mark.parametrize("ask", [kill_command, press_ctrl_c])
def test_asked_to_stop_it_writes_a_checkpoint_and_resume_goes_on(tmp_path: Path, launch, ask):
    prepare(tmp_path)
    long = settings(tmp_path, total_images=10**9, log__samples_every_images=0)
    process = launch(tmp_path, *long)
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 1, process)
    ask(process)
    output = finish(process)
    assert "stopped at" in output, output
    # DeepSpeed's own command tells of its KeyboardInterrupt; ours must not fail.
    assert f'File "{ROOT / "sid_scale"}' not in output, output
    seen = int((tmp_path / "run" / "checkpoints" / "latest").resolve().name)
    process = launch(tmp_path, *settings(tmp_path, total_images=seen + 8))
    output = finish(process)
    assert process.returncode == 0, output
    assert records(tmp_path / "run")[-1]["images_seen"] == seen + 8


@pytest.mark.faults
def test_a_typo_is_told_once_without_a_traceback(tmp_path: Path, launch):
    prepare(tmp_path)
    process = launch(tmp_path, *settings(tmp_path), "method=sidaa")
    output = finish(process)
    assert process.returncode != 0
    assert output.count("did you mean 'sida'?") == 1
    assert "Traceback" not in output


@pytest.mark.faults
def test_an_unusable_file_is_told_once_without_a_traceback(tmp_path: Path, launch):
    prepare(tmp_path)
    (tmp_path / "teacher" / "model.safetensors").write_bytes(b"broken")
    process = launch(tmp_path, *settings(tmp_path))
    output = finish(process)
    assert process.returncode != 0
    assert output.count("model.safetensors: damaged") == 1
    assert "Traceback" not in output


def test_every_method_stage_and_number_of_steps(tmp_path: Path):
    prepare(tmp_path)
    run_ranks(2, _every_method, tmp_path)


def _every_method(rank: int, folder: Path) -> None:
    cases = [
        {"method": "sid", "data": "null", "deepspeed": folder / "stage0.json"},
        {"method": "sid", "data": "null", "steps": 2, "deepspeed": folder / "stage3.json"},
        {"steps": 4, "deepspeed": folder / "stage1.json", "micro_batch": 2},
        {
            "method": "sid2a",
            "generator_init": folder / "run0" / "generator",
            "deepspeed": folder / "stage3.json",
            "objective.logvar_weighting": False,
            "dropout": 0.1,
            "activations.teacher": "offload",
            "ema.relative_width": 0.1,
        },
    ]
    for number, case in enumerate(cases):
        run = folder / f"run{number}"
        train(config(folder, run_dir=run, total_images=16, **case), joined())
        dist.barrier()  # rank 0 writes
        generator = load_network(run / "generator")
        start = load_network(folder / "teacher")
        assert generator.provenance["steps"] == case.get("steps", 1)
        assert not torch.equal(
            generator.state["unet.out_conv.weight"], start.state["unet.out_conv.weight"]
        )
        if rank == 0:
            adversarial = case.get("method") != "sid"
            for record in records(run):
                assert ("loss/generator_gan" in record) == adversarial
                assert ("logits/real" in record) == adversarial


def test_half_precision_trains_at_every_stage(tmp_path: Path):
    """On the CPU: weights, gradients and their reduction in bfloat16, masters in float32."""
    prepare(tmp_path)
    run_ranks(2, _half_precision, tmp_path)


def _half_precision(rank: int, folder: Path) -> None:
    quiet = {"log.samples_every_images": 0}
    train(config(folder, run_dir=folder / "float32", **quiet), joined())
    for stage in (0, 1, 2, 3):
        ds = write_deepspeed_json(folder / str(rank), stage, bf16={"enabled": True})
        train(config(folder, run_dir=folder / f"bf16-{stage}", deepspeed=ds, **quiet), joined())
        if rank == 0:
            for half, whole in zip(
                records(folder / f"bf16-{stage}"), records(folder / "float32"), strict=True
            ):
                assert half["skipped_updates"] == 0
                for name in ("loss/fake_score", "loss/discriminator", "grad_norm/fake_score"):
                    assert half[name] == pytest.approx(whole[name], rel=0.15), (stage, name)


def test_the_generator_waits_for_its_warm_up(tmp_path: Path):
    prepare(tmp_path)
    run_ranks(2, _warm_up, tmp_path)


def _warm_up(rank: int, folder: Path) -> None:
    warm = {
        "objective.warm_up.generator_images": 16,
        "objective.warm_up.adversarial_images": 24,
    }
    train(config(folder, **warm), joined())
    if rank == 0:
        told = {r["images_seen"]: r for r in records(folder / "run")}
        assert all("loss/discriminator" in r for r in told.values())
        assert ["loss/generator_sid" in told[n] for n in (8, 16, 24, 32)] == [
            False,
            False,
            True,
            True,
        ]
        assert ["loss/generator_gan" in told[n] for n in (8, 16, 24, 32)] == [
            False,
            False,
            False,
            True,
        ]


def test_the_first_average_is_the_first_generator(tmp_path: Path):
    """Its decay is that of the images seen before the batch: 0 at the first iteration."""
    prepare(tmp_path)
    run_ranks(2, _first_average, tmp_path)


def _first_average(rank: int, folder: Path) -> None:
    train(config(folder, total_images=8, **{"ema.ramp_up": 1.0}), joined())
    dist.barrier()
    if rank == 0:
        consolidate(folder / "run" / "checkpoints" / "latest", "generator", "master", folder / "g")
        weights, average = load_network(folder / "g"), load_network(folder / "run" / "generator")
        for name, weight in weights.state.items():
            assert torch.equal(average.state[name], weight), name


@pytest.mark.faults
def test_a_run_that_only_skips_ends_with_an_error_that_says_where(tmp_path: Path):
    prepare(tmp_path)
    run_ranks(2, _diverges, tmp_path)


def _diverges(rank: int, folder: Path) -> None:
    teacher = load_network(folder / "teacher")
    teacher.state["unet.enc.4x4_block0.conv_res0.weight"][0, 0, 0, 0] = float("nan")
    if rank == 0:
        save_network(folder / "broken", teacher)
    dist.barrier()
    broken = {"teacher": folder / "broken", "max_skipped": 3, "log.samples_every_images": 0}
    where = r"3 updates of the fake_score in a row .* the last one at 16 images seen .*nan"
    with pytest.raises(DivergedError, match=where):
        train(config(folder, **broken), joined())


@pytest.mark.faults
def test_a_loss_scale_that_still_falls_does_not_end_a_run(tmp_path: Path):
    prepare(tmp_path)
    run_ranks(1, _high_loss_scale, tmp_path)


def _high_loss_scale(rank: int, folder: Path) -> None:
    get_accelerator().is_fp16_supported = lambda: True  # slowly, on CPUs
    high = {"enabled": True, "initial_scale_power": 40, "hysteresis": 1}
    ds = write_deepspeed_json(folder / "high", 2, fp16=high)
    run = {"deepspeed": ds, "max_skipped": 3, "log.samples_every_images": 0}
    with redirect_stdout(StringIO()) as told:
        train(config(folder, total_images=80, **run), joined())
    assert records(folder / "run")[-1]["skipped_updates"] > 3
    assert "was skipped: float16's loss scale is now 5.49756e+11" in told.getvalue()

    fixed = write_deepspeed_json(folder / "fixed", 2, fp16={"enabled": True, "loss_scale": 2**40})
    with pytest.raises(DivergedError, match=r"loss scale stays at 1\.09951e\+12, so lower"):
        train(config(folder, run_dir=folder / "r", **{**run, "deepspeed": fixed}), joined())


@pytest.mark.faults
def test_a_generator_that_alone_diverges_is_not_hidden_by_a_sound_fake_score(tmp_path: Path):
    prepare(tmp_path)
    run_ranks(2, _generator_diverges, tmp_path)


def _generator_diverges(rank: int, folder: Path) -> None:
    generator_loss = sid.generator_loss

    def broken(*arguments, **options):
        loss = generator_loss(*arguments, **options)
        return loss._replace(total=loss.total * float("nan")) if rank == 1 else loss

    sid.generator_loss = broken
    with pytest.raises(DivergedError, match="3 updates of the generator in a row"):
        train(config(folder, max_skipped=3, total_images=160), joined())


@pytest.mark.faults
def test_what_a_finished_run_cannot_put_beside_its_generator_is_told_not_fatal(tmp_path: Path):
    prepare(tmp_path)
    teacher = load_network(tmp_path / "teacher")
    teacher.codec.update(kind="vae", vae=str(tmp_path / "nowhere"), scale=[1] * 3, bias=[0] * 3)
    save_network(tmp_path / "teacher", teacher)
    (tmp_path / "teacher" / "classes.txt").write_text("a\nb\nc\nd\n")
    run_ranks(1, _without_vae, tmp_path)
    generator = tmp_path / "run" / "generator"
    assert {p.name for p in generator.iterdir()} == {
        "README.md",
        "classes.txt",
        "config.json",
        "model.safetensors",
    }
    assert (
        "the VAE that decodes them is not in this folder" in (generator / "README.md").read_text()
    )


def _without_vae(rank: int, folder: Path) -> None:
    quiet = {"method": "sid", "data": "null", "log.samples_every_images": 0, "total_images": 8}
    with redirect_stdout(StringIO()) as told:
        train(config(folder, **quiet), joined())
    assert "generator: no VAE (" in told.getvalue()
    assert "done after 8 images" in told.getvalue()


CRASHES = """
import sys, time
from sid_scale.ranks import joined_ranks
with joined_ranks() as ranks:
    if ranks.rank == int(sys.argv[1]):
        raise RuntimeError("the disk of rank " + sys.argv[1] + " is on fire")
    time.sleep(3000)  # as in a collective that nobody will finish
"""


@pytest.mark.faults
@pytest.mark.parametrize("failing", [0, 1])
def test_an_exception_on_one_rank_ends_all_and_is_printed_once(tmp_path: Path, failing: int):
    (tmp_path / "crash.py").write_text(CRASHES)
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, str(tmp_path / "crash.py"), str(failing)]
    processes = [start(command, RANK=str(rank), LOCAL_RANK=str(rank), **place) for rank in (0, 1)]
    output = "".join(finish(process) for process in processes)  # not 3000 seconds
    assert all(process.returncode == 1 for process in processes)
    assert output.count("is on fire") == 2, output  # the raising line and the message
    assert output.count("Traceback") == 1


def train_some(rank: int, folder: Path, total_images: int) -> None:
    with redirect_stdout(StringIO()):
        train(config(folder, total_images=total_images, stream__on_bad_sample="skip"), joined())


@pytest.mark.faults
def test_skipped_samples_are_counted_over_ranks_and_interruptions(tmp_path: Path):
    prepare(tmp_path)
    bad = [f"{number:03d}" for number in range(16, 32, 2)]
    put_class(tmp_path / "data", "shard-000001.tar", bad, ARCHITECTURE.label_dim)
    run_ranks(2, train_some, tmp_path, 24)
    run_ranks(1, train_some, tmp_path, 40)  # an epoch
    counts = [record["data/skipped_samples"] for record in records(tmp_path / "run")]
    assert counts == sorted(counts)
    assert counts[-1] == len(bad)
