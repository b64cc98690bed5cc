"""Checking: a sound data set passes, and every fault of another one is told."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from sid_scale.codecs import VAECodec, normalisation
from sid_scale.data.prepare.shard_writer import write_shards
from sid_scale.data.prepare.verify import Report, check_shards
from sid_scale.data.shards import Shard, ShardError, read_index, write_index
from tests.conftest import flip_last_bit
from tests.data.test_shards import four, write_tar

MEAN, STD = (5.0, -1.0), (4.0, 0.5)
CODEC = VAECodec("vae", *normalisation(MEAN, STD)).describe()
SHAPE = (4, 3, 3)


def write(folder: Path, count: int = 400, shift: float = 0, stretch: float = 1) -> Path:
    """Posteriors whose draws have the codec's moments: half of the variance lies between them."""
    rng = np.random.default_rng(0)
    std = np.array(STD).reshape(2, 1, 1) * np.sqrt(0.5) * stretch
    mean = np.array(MEAN).reshape(2, 1, 1) + rng.normal(size=(count, 2, 3, 3)) * std
    stored = np.concatenate([mean + shift, np.broadcast_to(std, mean.shape)], axis=1)
    write_shards(
        folder,
        ((f"{i}", stored[i], i % 3) for i in range(count)),
        codec=CODEC,
        num_classes=3,
        shard_samples=100,
    )
    return folder


def check(folder: Path, workers: int = 1) -> Report:
    *progress, report = check_shards(folder, workers)
    assert isinstance(report, Report)
    assert sum(progress) == report.index.samples  # type: ignore[arg-type]
    return report


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sound_data_set_has_no_fault(tmp_path: Path, workers: int) -> None:
    report = check(write(tmp_path), workers)
    assert report.faults == []
    assert report.samples == 400
    assert report.classes == {0: 134, 1: 133, 2: 133}
    for channel, mean, std in zip(report.channels, MEAN, STD, strict=True):
        assert (channel.assumed_mean, channel.assumed_std) == pytest.approx((mean, std))
        assert channel.mean == pytest.approx(mean, abs=0.05 * std)
        assert channel.std == pytest.approx(std, rel=0.05)


@pytest.mark.faults
@pytest.mark.parametrize(("shift", "stretch"), [(1.0, 1.0), (0.0, 1.3), (0.0, 0.7)])
def test_latents_of_other_moments_than_the_codec_assumes_are_a_fault(
    tmp_path: Path, shift: float, stretch: float
) -> None:
    faults = check(write(tmp_path, shift=shift, stretch=stretch)).faults
    assert "the codec assumes -1.000 and 0.500" in faults[-1]


@pytest.mark.faults
def test_all_faults_are_told_not_only_the_first(tmp_path: Path) -> None:
    shards = [tmp_path / shard.name for shard in read_index(write(tmp_path)).shards]
    flip_last_bit(shards[0])
    shards[1].unlink()
    shards[2].write_bytes(shards[2].read_bytes()[:-10_240])
    told = "\n".join(check(tmp_path).faults)
    assert "shard-000000.tar: another SHA-256" in told
    assert "shard-000001.tar: cannot be read" in told
    size = shards[2].stat().st_size
    assert f"shard-000002.tar: {size} bytes, not {size + 10_240}" in told
    assert "shard-000003.tar" not in told


@pytest.mark.faults
def test_every_bad_sample_of_a_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path, count=4)
    members = four() | {"1.cls": b"7", "2.npy": b"nothing"}
    write_tar(tmp_path, members)
    index = read_index(tmp_path)
    shard = Shard.of(tmp_path / "shard-000000.tar", 4)
    write_index(tmp_path, dataclasses.replace(index, shards=(shard,)))
    told = "\n".join(check(tmp_path).faults)
    assert "sample '1': class 7 is not in 0..2" in told
    assert "sample '2': " in told
    assert "SHA-256" not in told


@pytest.mark.faults
def test_a_key_that_occurs_twice_is_named_with_its_shards(tmp_path: Path) -> None:
    write(tmp_path, count=200)
    one, two = (tmp_path / f"shard-{number:06d}.tar" for number in (0, 1))
    two.write_bytes(one.read_bytes())
    index = read_index(tmp_path)
    shards = (index.shards[0], Shard.of(two, 100))
    write_index(tmp_path, dataclasses.replace(index, shards=shards))
    faults = check(tmp_path).faults
    assert "sample '0' is there 2 times: shard-000000.tar, shard-000001.tar" in faults[0]
    assert len(faults) <= 8


@pytest.mark.faults
def test_a_histogram_that_the_shards_do_not_have_is_told(tmp_path: Path) -> None:
    index = read_index(write(tmp_path, count=30))
    write_index(tmp_path, dataclasses.replace(index, class_histogram=(11, 9, 10)))
    assert check(tmp_path).faults[:2] == [
        "class 0: 10 samples, not 11 as class_histogram says",
        "class 1: 10 samples, not 9 as class_histogram says",
    ]


@pytest.mark.faults
def test_without_a_readable_index_there_is_nothing_to_check(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"index\.json: no index can be read"):
        check(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(ShardError, match="format version 99"):
        check(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(ShardError, match="damaged"):
        check(tmp_path)
