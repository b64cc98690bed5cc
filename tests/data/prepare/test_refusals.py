"""Samples that are refused: all reported at once, mended, deleted or left out, and nothing lost."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sid_scale.cli import main
from sid_scale.codecs import VAECodec
from sid_scale.data.prepare.build import ShardBuild, Share
from sid_scale.data.prepare.pack import Packing, pack, plan_packing
from sid_scale.data.prepare.shard_notes import known_refusals
from sid_scale.data.prepare.sources import open_source
from sid_scale.data.shards import ShardError, ShardIndex, read_index
from sid_scale.demo.prepare import TEACHER
from tests.sources import (
    SHAPE,
    contents,
    digits,
    latents,
    npy,
    png,
    samples,
    write_folder,
    write_zip,
)

pytestmark = pytest.mark.faults

NAN = npy(np.full(SHAPE, np.nan, np.float32))
FILES = latents()
BAD = [name for name in FILES if name.endswith(".npy")][3::13]  # three of forty
WHOLE = Share()
SHARD = 30_000  # six of them
PACKING = Packing(SHARD, None, 0, None, VAECodec("vae", [1.0] * 4, [0.0] * 4))


def make(
    place: Path,
    out: Path,
    share: Share = WHOLE,
    max_bad: int | None = None,
    packing: Packing = PACKING,
) -> Any:
    source = open_source(place, refused=known_refusals(out))
    build = ShardBuild(out, plan_packing(source, packing), share, max_bad)
    with build.claimed():
        list(pack(source, build, workers=1))
        index = build.finish()
        if index is None:
            build.check_refused()
        return index


def inodes(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in out.glob("*.tar")}


def place(folder: Path, kind: str, files: dict[str, bytes]) -> Path:
    """The files as a folder or a zip archive, in place of what was there."""
    if kind == "zip":
        return write_zip(folder / "set.zip", files)
    for path in (folder / "set").rglob("*.npy"):
        path.unlink()
    return write_folder(folder / "set", files)


def mended(files: dict[str, bytes]) -> dict[str, bytes]:
    return FILES


def deleted(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in FILES.items() if name not in BAD}


def deleted_and_unlisted(files: dict[str, bytes]) -> dict[str, bytes]:
    labels = json.loads(FILES["dataset.json"])["labels"]
    left = [[name, label] for name, label in labels if name not in BAD]
    return deleted(files) | {"dataset.json": json.dumps({"labels": left}).encode()}


@pytest.mark.parametrize("kind", ["zip", "folder"])
@pytest.mark.parametrize("cure", [mended, deleted, deleted_and_unlisted])
def test_a_cured_source_goes_on_and_finished_shards_are_kept(
    tmp_path: Path, kind: str, cure: Callable[[dict[str, bytes]], dict[str, bytes]]
) -> None:
    bad = FILES | dict.fromkeys(BAD, NAN)
    out = tmp_path / "out"
    with pytest.raises(ShardError, match="3 samples are refused") as caught:
        make(place(tmp_path, kind, bad), out)
    assert all(name in str(caught.value) for name in BAD)
    before = inodes(out)
    assert 0 < len(before) < 6

    cured = place(tmp_path, kind, cure(bad))
    index: ShardIndex = make(cured, out)
    assert before.items() <= inodes(out).items()
    lost = 0 if cure is mended else len(BAD)
    assert index.samples == sum(index.class_histogram) == 40 - lost
    assert len(samples(out)) == 40 - lost
    recipe = json.loads((out / "recipe.json").read_text())
    assert {fields["name"]: fields["left_out"] for fields in recipe["refused"]} == dict.fromkeys(
        BAD, bool(lost)
    )
    # Once more: the finished set still belongs to this source.
    again = contents(out)
    assert make(cured, out) == index
    assert contents(out) == again


def test_what_is_left_out_is_listed_and_all_else_is_as_without(tmp_path: Path) -> None:
    path = place(tmp_path, "zip", FILES | dict.fromkeys(BAD, NAN))
    index = make(path, tmp_path / "out", max_bad=3)
    assert index.samples == 37
    straight = make(place(tmp_path / "other", "folder", FILES), tmp_path / "straight")
    assert straight.samples == 40
    found, whole = samples(tmp_path / "out"), samples(tmp_path / "straight")
    assert found.keys() == whole.keys() - {name.removesuffix(".npy") for name in BAD}
    recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert [fields["left_out"] for fields in recipe["refused"]] == [True] * 3
    assert all("NaN" in fields["why"] for fields in recipe["refused"])


def test_what_is_left_out_once_stays_so_and_is_no_error_later(tmp_path: Path) -> None:
    path = place(tmp_path, "zip", FILES | dict.fromkeys(BAD, NAN))
    with pytest.raises(ShardError, match="3 samples are refused"):
        make(path, tmp_path / "out")
    assert make(path, tmp_path / "out", Share(0, 2), max_bad=3) is None
    assert make(path, tmp_path / "out", max_bad=3).samples == 37
    assert make(path, tmp_path / "out").samples == 37


def test_of_several_refusals_only_those_that_are_left_are_reported(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="3 samples are refused"):
        make(place(tmp_path, "zip", FILES | dict.fromkeys(BAD, NAN)), tmp_path / "out")
    with pytest.raises(ShardError, match="1 samples are refused") as caught:
        make(place(tmp_path, "zip", FILES | {BAD[0]: NAN}), tmp_path / "out")
    assert BAD[0] in str(caught.value)
    assert make(place(tmp_path, "zip", FILES), tmp_path / "out").samples == 40


def test_more_than_may_be_left_out_is_an_error_that_loses_nothing(tmp_path: Path) -> None:
    path = place(tmp_path, "zip", FILES | dict.fromkeys(BAD, NAN))
    for _ in range(3):  # started again, it is no other
        with pytest.raises(ShardError, match="3 samples are refused, more than --max-bad 1"):
            make(path, tmp_path / "out", max_bad=1)
    before = inodes(tmp_path / "out")
    assert before
    assert make(path, tmp_path / "out", max_bad=3).samples == 37
    assert before.items() <= inodes(tmp_path / "out").items()


def test_deleted_samples_do_not_count(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="3 samples are refused"):
        make(place(tmp_path, "folder", FILES | dict.fromkeys(BAD, NAN)), tmp_path / "out")
    assert make(place(tmp_path, "folder", deleted(FILES)), tmp_path / "out", max_bad=0)


def test_parts_count_together_what_is_left_out(tmp_path: Path) -> None:
    path = place(tmp_path, "zip", FILES | dict.fromkeys(BAD, NAN))
    assert make(path, tmp_path / "out", Share(0, 2), max_bad=3) is None
    assert make(path, tmp_path / "out", Share(1, 2), max_bad=3).samples == 37
    make(path, tmp_path / "one", max_bad=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "out")


def test_a_change_elsewhere_in_the_source_is_another_source(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="refused"):
        make(place(tmp_path, "zip", FILES | dict.fromkeys(BAD, NAN)), tmp_path / "out")
    other = next(name for name in FILES if name not in BAD)
    changed = mended(FILES) | {other: npy(np.ones(SHAPE, np.float32))}
    with pytest.raises(ShardError, match="fingerprint"):
        make(place(tmp_path, "zip", changed), tmp_path / "out")


@pytest.mark.parametrize("cure", [None, deleted])
def test_a_shard_of_refused_samples_alone_is_left_out(tmp_path: Path, cure: Any) -> None:
    """With samples in shards of their own."""
    path = place(tmp_path, "folder", FILES | dict.fromkeys(BAD, NAN))
    tiny = replace(PACKING, shard_bytes=1)
    with pytest.raises(ShardError, match="3 samples are refused"):
        make(path, tmp_path / "out", packing=tiny)
    if cure:
        path = place(tmp_path, "folder", cure(FILES))
    index = make(path, tmp_path / "out", max_bad=0 if cure else 3, packing=tiny)
    assert index.samples == len(index.shards) == len(list((tmp_path / "out").glob("*.tar"))) == 37


def test_a_source_without_a_sound_sample_is_told_so(tmp_path: Path) -> None:
    path = place(tmp_path, "zip", FILES | {name: NAN for name in FILES if name.endswith(".npy")})
    with pytest.raises(ShardError, match="all samples are refused"):
        make(path, tmp_path / "out", max_bad=100)


@pytest.mark.parametrize("kind", ["zip", "folder"])
@pytest.mark.parametrize("labels", ["json", "folders"])
def test_a_class_whose_only_sample_was_lost_stays(tmp_path: Path, kind: str, labels: str) -> None:
    square = png(np.full((8, 8, 3), 204, np.uint8))
    files = {f"{name}/{n}.png": square for name in ("a", "b") for n in range(3)} | {"c/0.png": b""}
    if labels == "json":
        listed = [[name, "abc".index(name[0])] for name in files]
        files["dataset.json"] = json.dumps({"labels": listed}).encode()
    write = write_zip if kind == "zip" else write_folder
    with pytest.raises(ShardError, match="1 samples are refused"):
        make(write(tmp_path / "set", files), tmp_path / "out")
    shutil.rmtree(tmp_path / "set", ignore_errors=True)
    (tmp_path / "set").unlink(missing_ok=True)
    del files["c/0.png"]
    index = make(write(tmp_path / "set", files), tmp_path / "out")
    assert index.class_histogram == (3, 3, 0)


def test_of_many_refusals_all_are_listed_in_a_file(tmp_path: Path) -> None:
    bad = [name for name in FILES if name.endswith(".npy")][:30]
    with pytest.raises(ShardError, match="30 samples are refused") as caught:
        make(place(tmp_path, "zip", FILES | dict.fromkeys(bad, NAN)), tmp_path / "out")
    listed = re.search(r"all 30 are listed in (.*)", str(caught.value))
    assert listed
    assert all(name in Path(listed[1]).read_text() for name in bad)


def test_a_first_sample_that_is_bad_does_not_set_the_shape(tmp_path: Path) -> None:
    first = min(name for name in FILES if name.endswith(".npy"))
    path = place(tmp_path, "zip", FILES | {first: b"no numbers"})
    assert make(path, tmp_path / "out", max_bad=1).samples == 39


def test_encoding_skips_an_image_and_its_mirror_image_as_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = digits(each=3, classes=10)
    bad = sorted(files)[7::11]
    images = write_folder(tmp_path / "set", files | {name: files[name][:60] for name in bad})
    words = ["encode", "--source", str(images), "--codec", str(TEACHER), "--resolution", "32"]
    words += ["--flip", "--shard-size", "40kB", "--out", str(tmp_path / "out")]
    assert main(words) == 1
    told = capsys.readouterr().err
    assert f"{len(bad)} samples are refused" in told
    assert all(name in told for name in bad)
    assert main([*words, "--on-bad-image", "skip", "--max-bad", "1"]) == 1
    assert "more than --max-bad 1" in capsys.readouterr().err
    assert main([*words, "--on-bad-image", "skip", "--max-bad", str(len(bad))]) == 0
    assert read_index(tmp_path / "out").samples == 2 * (30 - len(bad))
