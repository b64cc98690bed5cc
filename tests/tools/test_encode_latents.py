"""The whole road: images in ImageNet's layout -> latents -> a check -> distillation."""

import json
import os
from pathlib import Path

import pytest

from sid_scale.cli import main
from sid_scale.commands.encode import shares_of_ranks
from sid_scale.data.prepare.build import Share
from sid_scale.data.shards import read_index, read_shard
from sid_scale.demo.prepare import ASSETS, TEACHER
from tests.conftest import ROOT
from tests.launches import PATIENCE, Start, contents, wait_for
from tests.ranks import free_port
from tests.sources import digits, write_folder


def arguments(source: Path, out: Path, *more: str) -> list[str]:
    data = ["--source", str(source), "--out", str(out), "--codec", str(TEACHER)]
    return ["encode", *data, "--resolution", "32", "--shard-size", "40kB", *more]


@pytest.mark.faults
@pytest.mark.distributed
def test_from_a_folder_of_images_to_a_distilled_generator(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    files = digits(each=8, classes=10)
    images = write_folder(tmp_path / "images", files)
    assert main(arguments(images, tmp_path / "straight")) == 0
    index = read_index(tmp_path / "straight")
    assert (index.samples, len(index.shards)) == (80, 8)

    # Two processes; one waits for ever for an image, and is killed.
    stuck = next(read_shard(tmp_path / "straight", index.shards[1])).key + ".PNG"
    (images / stuck).unlink()
    os.mkfifo(images / stuck)
    out = tmp_path / "out"
    first, second = (
        start("-m", "sid_scale", *arguments(images, out, "--part", f"{number}/2"))
        for number in (0, 1)
    )
    told = first.communicate(timeout=PATIENCE)[0]
    assert first.returncode == 0, told
    assert "part 0/2 is done, others are not" in told
    wait_for(lambda: (out / ".making" / "part-1-of-2" / "shard-000001.tar").exists(), second)
    second.kill()
    second.communicate()
    assert not (out / "index.json").exists()

    (images / stuck).unlink()
    write_folder(images, {stuck: files[stuck]})
    assert main(arguments(images, out, "--part", "1/2")) == 0
    assert "80 samples of 10 classes in 8 shards" in capsys.readouterr().out
    assert contents(out) == contents(tmp_path / "straight")

    main(["check", str(out), "--workers", "1"])
    assert "samples          80 of 80" in capsys.readouterr().out

    run = tmp_path / "run"
    process = start(
        *("-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", str(free_port())),
        *("--module", "sid_scale.train", "--config", "digits", f"run_dir={run}", f"data={out}"),
        *(f"teacher={TEACHER}", f"deepspeed={ROOT / 'ds_configs' / 'cpu.json'}"),
        *("total_images=192", "log.every_images=64", "log.samples_every_images=0"),
        *("checkpoint.every_images=1000", "snapshot.every_images=0"),
    )
    told = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, told
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["images_seen"] for record in records] == [64, 128, 192]


@pytest.mark.faults
def test_classes_must_be_those_of_the_teacher_before_anything_is_encoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = digits(each=1, classes=4)
    images = write_folder(tmp_path / "images", files)
    assert main(arguments(images, tmp_path / "out")) == 1
    told = capsys.readouterr().err
    assert f"4 classes, but the network in {TEACHER} has 10" in told
    assert main(arguments(images, tmp_path / "out", "--num-classes", "4")) == 2
    assert "has 10 classes; give the one or the other" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ranks_of_a_launcher_share_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shares_of_ranks(1, 3) == [Share(1, 3)]
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert shares_of_ranks(1, 3) == [Share(number, 12) for number in (4, 5, 6, 7)]


@pytest.mark.faults
@pytest.mark.distributed
def test_all_ranks_report_what_they_refuse_before_the_launcher_ends_them(
    tmp_path: Path, start: Start
) -> None:
    files = digits(each=6, classes=10)
    bad = sorted(files)[::9]
    images = write_folder(tmp_path / "images", files | dict.fromkeys(bad, b"no image"))
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}")
    process = start(*launcher, "-m", "--", "sid_scale", *arguments(images, tmp_path / "out"))
    told = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 1
    assert {name for name in files if f"{name}: no sound image" in told} == set(bad)
    assert "error: rank 1: " in told


@pytest.mark.faults
@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--part", "2/2"], "i from 0 to n - 1"),
        (["--part", "one"], "one: i/n with i"),
        (["--part=-1/2"], "-1/2: i/n with i"),
        (["--resolution", "0"], "--resolution 0 is below 1"),
        (["--shard-size", "big"], "invalid"),
    ],
)
def test_a_slip_of_the_finger_is_told_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], complaint: str
) -> None:
    try:
        status = main(arguments(tmp_path, tmp_path / "out", *more))
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.faults
def test_what_cannot_be_used_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_folder(tmp_path / "images", digits(each=1))
    plain = ["--source", str(images), "--out", str(tmp_path / "out"), "--resolution", "32"]
    for more, complaint in (
        (["--vae", str(tmp_path / "no-vae")], "no-vae: no config.json there"),
        (["--vae", str(ASSETS / "vae")], "the codec describes 4; give --codec"),
        (["--codec", str(ASSETS / "vae")], "unknown codec None"),
        (["--codec", str(TEACHER), "--source", str(tmp_path / "x")], "no such folder or archive"),
    ):
        assert main(["encode", *plain, *more]) == 1
        told = capsys.readouterr().err
        assert told.startswith("error: ")
        assert complaint in told
    assert main(["encode", *plain]) == 2
    assert "give --vae FOLDER, or --codec" in capsys.readouterr().err
