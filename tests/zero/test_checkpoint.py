"""A checkpoint is complete or absent, exact, and readable at any stage on any number of ranks."""

import json
import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sid_scale.zero import retention
from sid_scale.zero.checkpoint import TrainingState, load_checkpoint
from sid_scale.zero.ema import ShardedEMA
from sid_scale.zero.engines import ShardedNetwork
from sid_scale.zero.saved import TrainingStateError, read_manifest, read_state
from sid_scale.zero.writer import CheckpointWriter
from tests.ranks import run_ranks
from tests.zero.test_sharding import DECAY, assert_same, build, data, loss_of, masters

pytestmark = pytest.mark.distributed


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 8 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode and "CI" not in os.environ:
        pytest.skip("only root may mount a small disk")
    assert os.path.ismount(disk)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def state(network: ShardedNetwork, ema: ShardedEMA) -> TrainingState:
    return TrainingState({"generator": network}, {"generator": ema})


def trained(stage: int, folder: Path, **settings) -> tuple[ShardedNetwork, ShardedEMA]:
    network = build(stage, folder, **settings)
    ema = ShardedEMA(network)
    step(network)
    ema.update(DECAY)
    return network, ema


def step(network: ShardedNetwork, number: int = 0) -> None:
    network.backward(loss_of(network, data(number, dist.get_rank())))
    assert network.step()


def writer(folder: Path, **options) -> CheckpointWriter:
    return CheckpointWriter(folder, **{"keep": 9, "keep_every": 0, "async_save": True} | options)


def save(folder: Path, images_seen: int, what: TrainingState, **options) -> Path:
    """Writes a checkpoint and waits for it."""
    own = writer(folder, **options)
    own.save(images_seen, what, {"images": images_seen})
    completed = own.finish()
    assert completed is not None
    return completed.folder


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_checkpoint_of_one_stage_is_read_at_any_other(tmp_path: Path):
    run_ranks(2, _any_stage, tmp_path)
    run_ranks(1, _fewer_ranks, tmp_path)


def _any_stage(rank: int, folder: Path) -> None:
    for stage, other in ((0, 3), (1, 2), (2, 1), (3, 0)):
        network, ema = trained(stage, folder)
        checkpoint = save(folder, stage, state(network, ema), async_save=stage % 2 == 0)
        again = build(other, folder)
        again_ema = ShardedEMA(again)
        counters = load_checkpoint(checkpoint, state(again, again_ema))
        assert counters["images"] == stage
        saved, loaded = masters(network), masters(again)
        assert all(torch.equal(saved[name], value) for name, value in loaded.items())
        for moved in (network, again):  # Adam's moments came along: the next step is the same
            step(moved, 1)
        assert_same(masters(again), masters(network))


def _fewer_ranks(rank: int, folder: Path) -> None:
    network = build(2, folder)
    ema = ShardedEMA(network)
    checkpoint = folder / "000000000003"
    load_checkpoint(checkpoint, state(network, ema))
    (checkpoint / "generator-ema-00001-of-00002.safetensors").unlink()
    with pytest.raises(TrainingStateError, match="generator-ema-00001"):
        load_checkpoint(checkpoint, state(network, ema))


def test_what_is_written_behind_is_the_state_of_the_moment_of_saving(tmp_path: Path):
    run_ranks(2, _behind, tmp_path)


def _behind(rank: int, folder: Path) -> None:
    network, ema = trained(2, folder)
    what = state(network, ema)
    before = {kind: [v.clone() for _, v in held] for kind, held in what.share("generator").items()}
    own = writer(folder)
    assert not own.is_writing
    own.save(8, what, {})
    for held in what.share("generator").values():  # as if training went on at once
        for _, values in held:
            values.zero_()
    told = own.save(16, what, {})  # waits for the first
    assert told is not None
    assert told.folder == folder / "000000000008"
    assert told.pause_seconds > 0
    assert told.write_seconds > 0
    assert told.gigabytes == pytest.approx(
        sum(p.stat().st_size for p in told.folder.glob("[!m]*")) / 1e9
    )
    while own.is_writing:
        pass
    last = own.finish()
    assert last is not None
    assert last.folder == folder / "000000000016"
    assert own.finish() is None
    again = build(2, folder)
    loaded = state(again, ShardedEMA(again))
    load_checkpoint(told.folder, loaded)
    for kind, held in loaded.share("generator").items():
        for (_, values), wanted in zip(held, before[kind], strict=True):
            assert torch.equal(values, wanted), kind


def test_old_checkpoints_go_milestones_and_the_best_stay(tmp_path: Path):
    run_ranks(2, _rotation, tmp_path)


def _rotation(rank: int, folder: Path) -> None:
    network, ema = trained(2, folder)
    where = folder / "checkpoints"
    for images_seen in range(8, 88, 8):
        checkpoint = save(where, images_seen, state(network, ema), keep=2, keep_every=30)
        if rank == 0:
            assert retention.pointed(where, retention.LATEST) == checkpoint
            if images_seen == 16:
                retention.link(where, retention.BEST, checkpoint)
        dist.barrier()
    kept = [16, 32, 64, 72, 80]  # best; first at or past 30, 60; the newest two
    assert names(where) == [*(f"{n:012d}" for n in kept), "best", "latest"]
    assert json.loads((where / "latest" / "state.json").read_text())["images"] == 80


@pytest.mark.faults
def test_what_a_kill_left_half_written_is_no_checkpoint_and_goes(tmp_path: Path):
    run_ranks(1, _swept, tmp_path)


def _swept(rank: int, folder: Path) -> None:
    network, ema = trained(0, folder)
    where = folder / "checkpoints"
    for left_over in (".000000000016.partial", ".000000000001.removed"):
        (where / left_over).mkdir(parents=True)
        (where / left_over / "manifest.json").write_text("{}")
    assert retention.checkpoints(where) == []
    save(where, 8, state(network, ema))
    assert names(where) == ["000000000008", "latest"]


@pytest.mark.faults
def test_an_old_checkpoint_that_cannot_be_removed_is_told_and_ends_nothing(
    tmp_path: Path, small_disk: Path
):
    run_ranks(1, _busy, tmp_path, small_disk)


def _busy(rank: int, folder: Path, disk: Path) -> None:
    network, ema = trained(0, folder)
    own = writer(folder / "checkpoints", keep=1)
    first = save(folder / "checkpoints", 8, state(network, ema))
    (first / "mounted").mkdir()
    subprocess.run(["mount", "--bind", str(disk), str(first / "mounted")], check=True)
    try:
        for images_seen in (16, 24):
            own.save(images_seen, state(network, ema), {})
            completed = own.finish()
            assert completed is not None
            assert completed.folder.name == f"{images_seen:012d}"
    finally:
        [mounted] = (folder / "checkpoints").glob("*/mounted")
        subprocess.run(["umount", str(mounted)], check=True)


@pytest.mark.faults
def test_a_limit_on_the_files_size_leaves_the_previous_checkpoint(tmp_path: Path):
    run_ranks(2, _size_limit, tmp_path)


def _size_limit(rank: int, folder: Path) -> None:
    network, ema = trained(2, folder)
    where = folder / "checkpoints"
    first = save(where, 8, state(network, ema))
    if rank == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    message = (
        r"checkpoint 000000000016 could not be written: rank 1: OSError: .*File too large.*; "
        r".*/000000000008 is untouched\. Make room .* resume: auto goes on from there"
    )
    with pytest.raises(TrainingStateError, match=message):
        save(where, 16, state(network, ema))
    assert names(where) == ["000000000008", "latest"]
    manifest = read_manifest(first)
    assert manifest.faults(manifest.files) == []


@pytest.mark.faults
def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, small_disk: Path):
    run_ranks(2, _full_disk, tmp_path, small_disk)


def _full_disk(rank: int, folder: Path, disk: Path) -> None:
    network, ema = trained(2, folder)
    first = save(disk / "checkpoints", 8, state(network, ema))
    if rank == 0:  # leave room for a part of the next one
        room = os.statvfs(disk)
        (disk / "ballast").write_bytes(bytes(room.f_bavail * room.f_frsize - 100_000))
    dist.barrier()
    with pytest.raises(TrainingStateError, match=r"No space left on device.* is untouched"):
        save(disk / "checkpoints", 16, state(network, ema))
    assert names(disk / "checkpoints") == ["000000000008", "latest"]
    manifest = read_manifest(first)
    assert manifest.faults(manifest.files) == []


@pytest.mark.faults
def test_a_read_only_folder_is_told(tmp_path: Path, small_disk: Path):
    run_ranks(2, _read_only, tmp_path, small_disk)


def _read_only(rank: int, folder: Path, disk: Path) -> None:
    network, ema = trained(2, folder)
    save(disk / "checkpoints", 8, state(network, ema))
    if rank == 0:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    dist.barrier()
    message = "checkpoint 000000000016 could not be written: .*Read-only file system.* untouched"
    with pytest.raises(TrainingStateError, match=message):
        save(disk / "checkpoints", 16, state(network, ema))
    assert read_state(disk / "checkpoints" / "latest")["images"] == 8
