"""Packing: a shuffle that is fair everywhere, the same bytes whoever made them, no half work."""

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sid_scale.codecs import IdentityCodec, VAECodec, stability_vae
from sid_scale.data.prepare.build import ShardBuild, Share
from sid_scale.data.prepare.pack import Packing, pack, plan_packing
from sid_scale.data.prepare.plan import Plan, shuffled
from sid_scale.data.prepare.raw_samples import Source
from sid_scale.data.prepare.shard_writer import SampleFormat
from sid_scale.data.prepare.sources import open_source
from sid_scale.data.shards import ShardError, ShardIndex
from tests.conftest import flip_last_bit
from tests.sources import (
    CLASSES,
    SHAPE,
    contents,
    digits,
    latents,
    npy,
    png,
    samples,
    with_labels,
    write_folder,
    write_zip,
)

PACKING = Packing(30_000, None, 0, None, stability_vae("vae"))


def making(source: Source, folder: Path, **changes: Any) -> ShardBuild:
    packing = Packing(**{**vars(PACKING), **changes})
    return ShardBuild(folder, plan_packing(source, packing))


def make(source: Source, folder: Path, workers: int = 1, **changes: Any) -> ShardIndex:
    work = making(source, folder, **changes)
    with work.claimed():
        assert sum(pack(source, work, workers)) == len(source)
        index = work.finish()
        work.check_refused()
    assert index is not None
    return index


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return open_source(write_zip(tmp_path / "set.zip", latents()))


# What is made


def test_latents_keep_their_values_and_classes(source: Source, tmp_path: Path) -> None:
    index = make(source, tmp_path / "out")
    assert index.codec == stability_vae("vae").describe()
    assert (index.sample_shape, index.dtype, index.num_classes) == (SHAPE, "float32", CLASSES)
    assert index.class_histogram == (8,) * CLASSES
    found = samples(tmp_path / "out")
    with source.part(np.arange(40)).open() as raws:
        for raw in raws:
            array, label = found.pop(raw.key)
            np.testing.assert_array_equal(array, raw.load())
            assert label == raw.entry.label
    assert not found
    assert sorted(contents(tmp_path / "out")) == [
        "index.json",
        "recipe.json",
        *(shard.name for shard in index.shards),
    ]


def test_shards_are_even_and_no_larger_than_asked_for(source: Source, tmp_path: Path) -> None:
    index = make(source, tmp_path / "out", shard_bytes=40_000)
    assert max(shard.bytes for shard in index.shards) <= 40_000
    counts = {shard.samples for shard in index.shards}
    assert max(counts) - min(counts) <= 1
    assert make(source, tmp_path / "tiny", shard_bytes=1).shards[0].samples == 1


def test_pixels_are_stored_as_they_are(tmp_path: Path) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    source = open_source(write_folder(tmp_path / "set", {"a/1.png": png(values)}))
    index = make(source, tmp_path / "out")
    assert (index.sample_shape, index.dtype) == ((3, 16, 16), "uint8")
    assert index.codec == IdentityCodec().describe()
    with open_source(tmp_path / "out").part(np.array([0])).open() as raws:
        np.testing.assert_array_equal(next(raws).load(), values)


def test_images_of_many_sizes_are_cropped_to_one_if_asked(tmp_path: Path) -> None:
    files = {f"a/{n}.png": png(np.zeros((12 + n, 12, 3), np.uint8)) for n in range(3)}
    source = open_source(write_folder(tmp_path / "set", files))
    with pytest.raises(
        ShardError, match=r"1\.png: sample 'a/1': shape \(3, 13, 12\).*--resolution"
    ):
        make(source, tmp_path / "all")
    assert make(source, tmp_path / "crop", resolution=4).sample_shape == (3, 4, 4)


@pytest.mark.faults
def test_images_that_are_no_squares_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    files = {f"a/{n}.png": png(np.zeros((8, 12, 3), np.uint8)) for n in range(3)}
    source = open_source(write_folder(tmp_path / "set", files))
    with pytest.raises(ShardError, match=r"0\.png: 12x8 pixels.*squares.*--resolution"):
        make(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.faults
def test_what_is_for_latents_is_refused_for_pixels_and_the_other_way_round(
    source: Source, tmp_path: Path
) -> None:
    files = {"a/0.png": png(np.zeros((8, 8, 3), np.uint8))}
    images = open_source(write_folder(tmp_path / "set", files))
    with pytest.raises(ShardError, match="stored as uint8: --dtype is for latents"):
        make(images, tmp_path / "out", dtype="float16")
    with pytest.raises(ShardError, match="describes a network of pixels"):
        make(source, tmp_path / "out", codec=IdentityCodec())


@pytest.mark.parametrize("seed", range(5))
def test_any_run_of_shards_is_a_fair_sample_of_classes_that_came_sorted(seed: int) -> None:
    total, classes, shards = 12_000, 10, 60
    labels = np.arange(total) * classes // total

    class Sorted:
        shuffled = False

        def __len__(self) -> int:
            return total

    order = shuffled(Sorted(), seed)  # type: ignore[arg-type]
    assert sorted(order) == list(range(total))
    plan = Plan({}, {}, seed, total, shards, SampleFormat(SHAPE, "float32", classes), {})
    for length in (1, 5, 20):
        worst = 0.0
        for first in range(shards - length + 1):
            run = order[plan.positions(first).start : plan.positions(first + length - 1).stop]
            counts = np.bincount(labels[run], minlength=classes)
            expected = len(run) / classes
            worst = max(worst, float(((counts - expected) ** 2 / expected).sum()))
        assert worst < 36  # chi-square of 9 degrees: above this 1 in 25,000 times
    other = shuffled(Sorted(), seed + 100)  # type: ignore[arg-type]
    assert not np.array_equal(order, other)


def test_the_shuffle_is_the_same_for_ever(source: Source) -> None:
    assert shuffled(source, 0)[:8].tolist() == [0, 31, 8, 19, 26, 9, 3, 18]


# However it was made


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_does_not_change_a_byte(
    source: Source, tmp_path: Path, workers: int
) -> None:
    make(source, tmp_path / "one", shard_bytes=15_000)
    make(source, tmp_path / "many", workers, shard_bytes=15_000)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_parts_that_never_meet_make_the_same(source: Source, tmp_path: Path) -> None:
    make(source, tmp_path / "one")
    plan = making(source, tmp_path / "one").plan
    for number in (2, 0, 1):
        part = ShardBuild(tmp_path / "many", plan, Share(number, 3))
        with part.claimed():
            list(pack(source, part, workers=1))
            assert (part.finish() is None) == (number != 1)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_parts_that_finish_at_the_same_moment_both_find_it_finished(
    source: Source, tmp_path: Path
) -> None:
    plan = making(source, tmp_path / "set").plan
    parts = [ShardBuild(tmp_path / "set", plan, Share(number, 2)) for number in (0, 1)]
    with parts[0].claimed(), parts[1].claimed():
        for part in parts:
            list(pack(source, part, workers=1))
        first = parts[0].finish()
        assert parts[1].finish() == first is not None
        assert sum(pack(source, parts[1], workers=1)) > 0  # nothing is made again
    assert not (tmp_path / "set" / ".making").exists()


def test_a_finished_shard_is_kept_and_a_damaged_one_made_again(
    source: Source, tmp_path: Path
) -> None:
    make(source, tmp_path / "whole")
    work = making(source, tmp_path / "set")
    with work.claimed():
        list(pack(source, work, workers=1))
    kept, damaged = (tmp_path / "set" / f"shard-{number:06d}.tar" for number in (0, 1))
    before = kept.stat().st_ino
    flip_last_bit(damaged)
    with work.claimed():
        list(pack(source, work, workers=1))
        work.finish()
    assert kept.stat().st_ino == before
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


def test_made_a_second_time_nothing_changes(source: Source, tmp_path: Path) -> None:
    work = making(source, tmp_path / "set")
    index = make(source, tmp_path / "set")
    with work.claimed():
        assert work.is_finished
        assert work.finish() == index


# What is refused


@pytest.mark.faults
@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seed": 1}, "seed 0 there, 1 now"),
        ({"dtype": "float16"}, 'dtype "float32" there, "float16" now'),
        ({"shard_bytes": 60_000}, "shards 6 there, 3 now"),
    ],
)
def test_a_folder_takes_one_plan_only(
    source: Source, tmp_path: Path, changes: dict[str, Any], difference: str
) -> None:
    with making(source, tmp_path / "set").claimed():
        pass
    other = making(source, tmp_path / "set", **changes)
    with pytest.raises(ShardError, match=f"made otherwise: .*{difference}"), other.claimed():
        pass


@pytest.mark.faults
def test_another_source_is_another_plan(source: Source, tmp_path: Path) -> None:
    with making(source, tmp_path / "set").claimed():
        pass
    files = latents() | {"00000/img-latents-00000003.npy": npy(np.ones(SHAPE, np.float32))}
    other = making(open_source(write_zip(tmp_path / "other.zip", files)), tmp_path / "set")
    with pytest.raises(ShardError, match="fingerprint"), other.claimed():
        pass


@pytest.mark.faults
def test_a_part_is_made_by_one_process_at_a_time(source: Source, tmp_path: Path) -> None:
    work = making(source, tmp_path / "set")
    with work.claimed(), pytest.raises(ShardError, match="another process makes part 0/1"):
        with work.claimed():
            pass


@pytest.mark.faults
def test_a_folder_with_a_data_set_of_other_making_is_left_alone(
    source: Source, tmp_path: Path
) -> None:
    make(source, tmp_path / "set")
    (tmp_path / "set" / "recipe.json").unlink()
    before = contents(tmp_path / "set")
    with pytest.raises(ShardError, match="already holds a data set"):
        make(source, tmp_path / "set")
    assert contents(tmp_path / "set") == before


def spoil(change: Callable[[dict[str, bytes]], dict[str, bytes]], folder: Path) -> Source:
    files = latents()
    return open_source(write_zip(folder / "bad.zip", files | change(files)))


BAD = "00001/img-latents-00000017.npy"
WORSE = "00002/img-latents-00000023.npy"
NAN = npy(np.full(SHAPE, np.nan, np.float32))
OTHER = npy(np.zeros((8, 4, 5), np.float32))


@pytest.mark.faults
@pytest.mark.parametrize("workers", [1, 2])
def test_bad_samples_are_refused_by_name_and_key_all_at_once(tmp_path: Path, workers: int) -> None:
    files = latents() | {BAD: NAN, WORSE: OTHER}
    source = open_source(write_zip(tmp_path / "bad.zip", files))
    with pytest.raises(ShardError) as caught:
        make(source, tmp_path / "set", workers)
    told = str(caught.value)
    assert told.startswith("2 samples are refused")
    assert f"bad.zip: {BAD}: sample '00001/img-latents-00000017': NaN" in told
    assert f"bad.zip: {WORSE}: sample '00002/img-latents-00000023': shape (8, 4, 5)" in told
    assert len(list((tmp_path / "set").glob("*.tar"))) == 4  # of 6: those of others are made
    assert not (tmp_path / "set" / "index.json").exists()


@pytest.mark.faults
def test_what_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    files = latents() | {BAD: npy(np.full(SHAPE, 1e6, np.float32))}
    source = open_source(write_zip(tmp_path / "bad.zip", files))
    with pytest.raises(ShardError, match=rf"{BAD}.*infinity \(as float16\)"):
        make(source, tmp_path / "set", dtype="float16")
    make(source, tmp_path / "set32")


@pytest.mark.faults
def test_a_mended_file_is_all_that_has_to_be_done_again(tmp_path: Path) -> None:
    good = digits(each=10)
    name = sorted(good)[17]
    source = open_source(write_folder(tmp_path / "set", good | {name: good[name][:50]}))
    with pytest.raises(ShardError, match=rf"{name}: no sound image"):
        make(source, tmp_path / "out", shard_bytes=100_000)
    kept = set((tmp_path / "out").glob("*.tar"))
    write_folder(tmp_path / "set", good)
    index = make(open_source(tmp_path / "set"), tmp_path / "out", shard_bytes=100_000)
    assert index.samples == 40
    assert kept <= set((tmp_path / "out").glob("*.tar"))


@pytest.mark.faults
def test_latents_that_the_codec_does_not_describe_are_refused(tmp_path: Path) -> None:
    files = with_labels({"a.npy": npy(np.zeros((6, 4, 4), np.float32))}, [["a.npy", 0]])
    source = open_source(write_zip(tmp_path / "set.zip", files))
    with pytest.raises(ShardError, match=r"a\.npy: shape \(6, 4, 4\), but the codec has 4"):
        make(source, tmp_path / "out")
    codec = VAECodec("v", [1.0] * 3, [0.0] * 3)
    assert make(source, tmp_path / "out", codec=codec).codec == codec.describe()


@pytest.mark.faults
def test_a_disk_that_fills_is_told_and_nothing_is_lost(source: Source, tmp_path: Path) -> None:
    whole = make(source, tmp_path / "whole")
    work = making(source, tmp_path / "set")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with work.claimed():
        shards = pack(source, work, workers=1)
        next(shards)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # as a full disk: writes fail
        try:
            with pytest.raises(ShardError, match=r"shard-000001\.tar cannot be written.*goes on"):
                next(shards)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "set").glob("*.tar")] == ["shard-000000.tar"]
    assert make(source, tmp_path / "set") == whole


@pytest.mark.faults
def test_an_archive_that_shrinks_meanwhile_is_told(source: Source, tmp_path: Path) -> None:
    os.truncate(tmp_path / "set.zip", 2_000)
    with pytest.raises(ShardError, match=r"img-latents.*damaged"):
        make(source, tmp_path / "set", shard_bytes=10**6)
