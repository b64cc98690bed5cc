"""Averages of several widths beside the published one: kept, resumed, written as snapshots."""

import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from sid_scale.cli import main
from sid_scale.distill.consolidate import consolidate
from sid_scale.distill.loop import train
from sid_scale.networks.folder import load_network
from sid_scale.zero import power_ema
from sid_scale.zero.saved import TrainingStateError, read_manifest
from sid_scale.zero.snapshots import EMA_SNAPSHOTS, Snapshot, read_snapshots
from tests.ranks import joined, run_ranks
from tests.tiny import config, freezing_generator, prepare

pytestmark = pytest.mark.distributed

STAGES = (0, 1, 2, 3)
WIDTHS = (0.05, 0.1)
AVERAGES = {"ema.relative_widths": "[0.05,0.1]", "ema.snapshot_every_images": 8}
OFTEN = {"checkpoint.every_images": 8, "checkpoint.keep": 9, "log.samples_every_images": 0}
DISCARDED = "000000000020"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs of two ranks and four iterations: run0 to run3, by their stage; resumed2 and
    resumed3, each stopped after two iterations; `plain`, which keeps no such averages; and
    `frozen`, which trains its generator in part."""
    folder = tmp_path_factory.mktemp("runs")
    prepare(folder)
    run_ranks(2, _runs, folder)
    return folder


def _runs(rank: int, folder: Path) -> None:
    def go(name: str, stage: int, **settings: object) -> None:
        place = {"run_dir": folder / name, "deepspeed": folder / f"stage{stage}.json"}
        train(config(folder, **place, **OFTEN, **settings), joined())
        dist.barrier()

    for stage in STAGES:
        go(f"run{stage}", stage, **AVERAGES)
    for stage in (2, 3):
        go(f"resumed{stage}", stage, total_images=16, **AVERAGES)
        if rank == 0:  # as a run leaves it that got further than its last checkpoint
            root = folder / f"resumed{stage}" / EMA_SNAPSHOTS
            shutil.copytree(root / "000000000016", root / DISCARDED)
            shutil.copytree(root / "000000000016", root / f".{DISCARDED}.partial")
        dist.barrier()
        go(f"resumed{stage}", stage, **AVERAGES)
    go("plain", 2)
    with freezing_generator("convolutions"):
        go("frozen", 2, **AVERAGES)


def of(snapshot: Snapshot, width: float) -> dict[str, Tensor]:
    return load_file(snapshot.folder / snapshot.averages[width])


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("stage", STAGES)
def test_snapshots_hold_the_power_function_averages_of_the_weights(
    runs: Path, stage: int, tmp_path: Path
):
    run = runs / f"run{stage}"
    snapshots = read_snapshots(run)
    assert [s.images_seen for s in snapshots] == [8, 16, 24, 32]
    expected: dict[float, dict[str, Tensor]] = {}
    for snapshot in snapshots:
        out = tmp_path / str(snapshot.images_seen)
        checkpoint = run / "checkpoints" / snapshot.folder.name
        consolidate(checkpoint, "generator", "master", out)
        weights = load_network(out).state
        for width in WIDTHS:
            share = power_ema.decay(width, snapshot.images_seen, 8)
            before = expected.get(width, weights)
            expected[width] = {n: w.lerp(before[n], share) for n, w in weights.items()}
            found = of(snapshot, width)
            assert found.keys() < weights.keys()  # all but buffers
            for name, value in found.items():
                torch.testing.assert_close(value, expected[width][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_resumed_run_has_the_same_averages_to_the_last_bit(runs: Path, stage: int):
    whole, resumed = runs / f"run{stage}", runs / f"resumed{stage}"
    ours, theirs = read_snapshots(resumed), read_snapshots(whole)
    assert [s.files for s in ours] == [s.files for s in theirs]  # sizes and SHA-256
    last = [read_manifest(run / "checkpoints/latest").files for run in (whole, resumed)]
    for rank in (0, 1):
        for kind in ("ema", "ema_0.050", "ema_0.100", "master"):
            part = f"generator-{kind}-{rank:05d}-of-00002.safetensors"
            assert last[0][part] == last[1][part]


def test_a_resumed_run_leaves_no_snapshot_of_the_future_that_it_discards(runs: Path):
    names = {p.name for p in (runs / "resumed2" / EMA_SNAPSHOTS).iterdir()}
    assert names == {f"{images:012d}" for images in (8, 16, 24, 32)}


def test_a_run_is_the_same_with_and_without_them(runs: Path):
    plain, run = runs / "plain", runs / "run2"
    assert not (plain / EMA_SNAPSHOTS).exists()
    assert same(load_network(plain / "generator").state, load_network(run / "generator").state)
    ours, theirs = (read_manifest(r / "checkpoints/latest").files for r in (run, plain))
    tensors = {name for name in theirs if name.endswith(".safetensors")}
    assert {name: ours[name] for name in tensors} == {name: theirs[name] for name in tensors}
    assert ours.keys() - theirs.keys() == {
        f"generator-ema_{width}-0000{rank}-of-00002.safetensors"
        for width in ("0.050", "0.100")
        for rank in (0, 1)
    }


def test_frozen_weights_take_no_room(runs: Path):
    snapshot = read_snapshots(runs / "frozen")[-1]
    assert snapshot.frozen is not None
    frozen = set(snapshot.frozen["weights"])
    assert frozen
    for width in WIDTHS:
        assert not frozen & of(snapshot, width).keys()


@pytest.mark.parametrize("name", ["run2", "frozen"])
def test_a_stored_average_comes_back_as_a_generator_of_the_run(
    runs: Path, name: str, tmp_path: Path
):
    run, out = runs / name, tmp_path / "out"
    assert main(["phema", str(run), "--width", "0.05", str(out)]) == 0
    ours, published = load_network(out), load_network(run / "generator")
    stored = of(read_snapshots(run)[-1], 0.05)
    for parameter, value in stored.items():
        torch.testing.assert_close(ours.state[parameter], value, rtol=1e-6, atol=1e-7)
    for parameter in ours.state.keys() - stored.keys():  # frozen weights and buffers
        assert torch.equal(ours.state[parameter], published.state[parameter])
    assert ours.provenance.pop("post_hoc_ema")["relative_width"] == 0.05
    assert (ours.architecture, ours.codec, ours.provenance) == (
        published.architecture,
        published.codec,
        published.provenance,
    )
    assert (out / "README.md").is_file()


@pytest.mark.faults
@pytest.mark.parametrize("widths", ["null", "[0.05,0.1,0.15]"])
def test_other_widths_are_another_run(runs: Path, widths: str):
    run_ranks(1, _refused, runs, widths)


def _refused(rank: int, folder: Path, widths: str) -> None:
    place = {"run_dir": folder / "run2", "total_images": 40}
    with pytest.raises(TrainingStateError, match=r"ema\.relative_widths: \(0\.05, 0\.1\) -> "):
        train(config(folder, **place, **{"ema.relative_widths": widths}), joined())
