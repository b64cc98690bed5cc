"""Network folders out of shards: any stage, any number of ranks, nothing but files needed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sid_scale.distill.consolidate import consolidate
from sid_scale.distill.loop import train
from sid_scale.networks.folder import CheckpointError, load_network
from sid_scale.zero.saved import TrainingStateError
from tests.conftest import ROOT, flip_last_bit
from tests.programs import Done, python
from tests.ranks import joined, run_ranks
from tests.tiny import config, prepare

pytestmark = pytest.mark.distributed

STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short finished runs of two ranks at each stage: `runs`/run0 to run3."""
    folder = tmp_path_factory.mktemp("runs")
    prepare(folder)
    run_ranks(2, _runs, folder)
    return folder


def _runs(rank: int, folder: Path) -> None:
    place = joined()
    for stage in STAGES:
        run = {"run_dir": folder / f"run{stage}", "deepspeed": folder / f"stage{stage}.json"}
        train(config(folder, **run, **{"log.samples_every_images": 0}), place)
        dist.barrier()


def tool(*arguments: object) -> Done:
    return python("tools/consolidate.py", *arguments, folder=ROOT)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("stage", STAGES)
def test_the_average_is_to_the_last_bit_the_one_that_the_run_evaluates(
    runs: Path, stage: int, tmp_path: Path
):
    run = runs / f"run{stage}"
    done = tool(run / "checkpoints" / "latest", tmp_path / "out", "--role", "generator_ema")
    assert done.returncode == 0, done.stderr
    ours, theirs = load_network(tmp_path / "out"), load_network(run / "generator")
    assert same(ours.state, theirs.state)
    assert (ours.architecture, ours.codec, ours.provenance) == (
        theirs.architecture,
        theirs.codec,
        theirs.provenance,
    )


def test_all_roles_are_the_same_networks_at_every_stage(runs: Path, tmp_path: Path):
    for stage in STAGES:
        done = tool(runs / f"run{stage}/checkpoints/latest", tmp_path / str(stage), "--role", "all")
        assert done.returncode == 0, done.stderr
    roles = ("generator_ema", "generator", "fake_score")
    assert sorted(p.name for p in (tmp_path / "0").iterdir()) == sorted(roles)
    for role in roles:
        first = load_network(tmp_path / "0" / role)
        assert (first.architecture.logvar_channels > 0) == (role == "fake_score")
        assert first.provenance["images_seen"] == 32
        first.build()(torch.randn(1, 3, 8, 8), torch.tensor(2.5))
        for stage in STAGES[1:]:  # other stages sum gradients in another order
            other = load_network(tmp_path / str(stage) / role).state
            for name, value in first.state.items():
                assert (other[name] - value).norm() <= 1e-4 * (1 + value.norm()), (stage, name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_rounds_weights_once_and_buffers_never(
    runs: Path, tmp_path: Path, dtype: str
):
    checkpoint, whole = runs / "run2" / "checkpoints" / "latest", runs / "run2" / "generator"
    done = tool(checkpoint, tmp_path / "half", "--role", "generator_ema", "--dtype", dtype)
    assert done.returncode == 0, done.stderr
    exact = load_network(whole)
    buffers = [name for name, _ in exact.build().named_buffers()]
    rounded = {
        name: value if name in buffers else value.to(getattr(torch, dtype))
        for name, value in exact.state.items()
    }
    assert same(load_network(tmp_path / "half").state, rounded)
    sizes = [(f / "model.safetensors").stat().st_size for f in (tmp_path / "half", whole)]
    assert sizes[0] < 0.7 * sizes[1]


def test_memory_does_not_grow_with_the_network():
    """EDM2-XS, 0.5 GB, on 8 ranks: the benchmark fails above twice the largest tensor + 300 MB."""
    command = [sys.executable, "tools/bench_consolidate.py", "--size", "xs"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["gigabytes"] == pytest.approx(0.5, rel=0.05)
    assert 0 < told["peak_megabytes"] <= told["allowed_megabytes"] < 1e3 * told["gigabytes"]


def copy_of(checkpoint: Path, folder: Path) -> Path:
    return Path(shutil.copytree(checkpoint.resolve(), folder / checkpoint.resolve().name))


PART = "generator-ema-00001-of-00002.safetensors"


@pytest.mark.faults
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda part: part.unlink(), rf"{PART} \(of rank 1 of 2\) is missing"),
        (
            lambda part: part.write_bytes(part.read_bytes()[:-40]),
            rf"{PART} \(of rank 1 of 2\) has .* bytes instead",
        ),
        (lambda part: flip_last_bit(part), rf"{PART} \(of rank 1 of 2\) has another checksum"),
        (
            lambda part: shutil.copy(part.parents[1] / "foreign" / PART, part),
            rf"{PART} \(of rank 1 of 2\) has another checksum",
        ),
        (
            lambda part: flip_last_bit(part.with_name("state.json")),
            "state.json has another checksum",
        ),
    ],
    ids=["missing", "truncated", "flipped", "foreign", "state"],
)
def test_a_damaged_part_is_named_and_nothing_is_left(runs: Path, tmp_path: Path, harm, message):
    checkpoint = copy_of(runs / "run2" / "checkpoints" / "latest", tmp_path)
    foreign = copy_of(runs / "run2" / "checkpoints" / "000000000016", tmp_path)
    foreign.rename(tmp_path / "foreign")
    before = sorted(p.name for p in tmp_path.iterdir())
    harm(checkpoint / PART)
    with pytest.raises(TrainingStateError, match=message):
        consolidate(checkpoint, "generator", "ema", tmp_path / "out")
    done = tool(checkpoint, tmp_path / "new" / "out", "--role", "all")
    assert done.returncode == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.faults
def test_what_is_no_checkpoint_is_told_in_one_line(runs: Path, tmp_path: Path):
    done = tool(runs, tmp_path / "out", "--role", "generator")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {runs} is no checkpoint")
    assert done.stderr.count("\n") == 1


@pytest.mark.faults
def test_a_folder_that_holds_something_else_is_not_replaced(runs: Path, tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="is no network folder"):
        consolidate(runs / "run1" / "checkpoints" / "latest", "generator", "ema", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.faults
def test_a_disk_that_fills_up_leaves_no_partial_output(runs: Path, tmp_path: Path):
    command = f"ulimit -f 8; {sys.executable} tools/consolidate.py"
    command += f" {runs}/run1/checkpoints/latest {tmp_path}/out --role generator"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
