"""Snapshots of averages: complete or absent, and of one history."""

import os
from pathlib import Path

import pytest
import torch

from sid_scale.zero.snapshots import SnapshotError, read_snapshots, remove_after, write_snapshot

AVERAGE = {"weight": torch.ones(3)}
NOTHING = {"buffers": {}, "network": {}, "frozen": None}


def write(run: Path, images_seen: int, *widths: float) -> Path:
    averages = [(width, AVERAGE) for width in widths or (0.05, 0.1)]
    return write_snapshot(run / "ema_snapshots", images_seen, averages, **NOTHING)


def test_what_was_written_is_read_oldest_first(tmp_path: Path):
    for images in (20, 100, 3):
        write(tmp_path, images)
    found = read_snapshots(tmp_path)
    assert [s.images_seen for s in found] == [3, 20, 100]
    assert found[0].averages == {0.05: "0.050.safetensors", 0.1: "0.100.safetensors"}
    for snapshot in found:
        snapshot.check_files()


def test_a_moment_is_written_over_and_widths_keep_their_digits(tmp_path: Path):
    write(tmp_path, 3)
    write(tmp_path, 3, 0.05, 0.0512)
    [found] = read_snapshots(tmp_path)
    assert found.averages == {0.05: "0.050.safetensors", 0.0512: "0.0512.safetensors"}
    assert [p.name for p in (tmp_path / "ema_snapshots").iterdir()] == ["000000000003"]


def test_later_ones_and_half_written_ones_are_removed(tmp_path: Path):
    for images in (10, 20, 30):
        write(tmp_path, images)
    (tmp_path / "ema_snapshots" / ".000000000040.partial").mkdir()
    remove_after(tmp_path / "ema_snapshots", 20)
    names = sorted(p.name for p in (tmp_path / "ema_snapshots").iterdir())
    assert names == ["000000000010", "000000000020"]
    remove_after(tmp_path / "nothing", 0)


def test_all_of_it_is_on_the_disk_when_it_takes_its_name(tmp_path: Path, monkeypatch):
    flushed, fsync, replace = [], os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def recorded_replace(old: Path, new: Path) -> None:
        flushed.append(f"named {new.name}")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    folder = write(tmp_path, 3)
    assert set(flushed[:-2]) == {p.name for p in folder.iterdir()} | {".000000000003.partial"}
    assert flushed[-2:] == ["named 000000000003", "ema_snapshots"]


def test_what_has_no_snapshots_name_is_passed_over(tmp_path: Path):
    """A superscript is a digit, and no number."""
    write(tmp_path, 10)
    for name in (".000000000040.partial", "notes", "\N{SUPERSCRIPT TWO}"):
        (tmp_path / "ema_snapshots" / name).mkdir()
    assert [s.images_seen for s in read_snapshots(tmp_path)] == [10]


@pytest.mark.faults
def test_a_failure_leaves_the_one_before_and_nothing_half_written(tmp_path: Path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    write(tmp_path, 3)
    monkeypatch.setattr("sid_scale.zero.snapshots.write_tensors", full)
    for images in (3, 4):
        with pytest.raises(
            SnapshotError, match=r"000000000\d+ cannot be written: No space left.*resume"
        ):
            write(tmp_path, images)
    assert [p.name for p in (tmp_path / "ema_snapshots").iterdir()] == ["000000000003"]
    read_snapshots(tmp_path)[0].check_files()
