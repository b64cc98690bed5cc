"""The demo's shards, short runs, and the judgement of a generator folder."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from sid_scale.config.run import load_config
from sid_scale.data.prepare.verify import verify_shards
from sid_scale.demo.digits import pixel_features
from sid_scale.demo.judge import Judge, Judgement, distances, draw_curve, draw_samples
from sid_scale.demo.prepare import PIXEL_TEACHER, TEACHER, write_digit_shards
from sid_scale.distill.loop import train
from sid_scale.evaluate.metrics.distances import FeatureStatistics, frechet_distance
from sid_scale.networks.folder import NetworkFolder, load_network, save_network
from tests.ranks import joined, run_ranks


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(TEACHER)


@pytest.fixture(scope="module")
def pixel_judge() -> Judge:
    return Judge(PIXEL_TEACHER)


def test_real_digits_are_at_distance_zero(judge: Judge):
    assert judge.distance(judge.images) == pytest.approx(0, abs=1e-6)
    assert 0 < judge.codec_distance() < 0.02


def test_what_chance_alone_makes_of_real_digits(judge: Judge):
    # Against the same digits a draw of as many is nearer than half of them against other ones.
    assert 0.05 < judge.resampled_distance() < 0.07
    assert judge.halves_distance() == pytest.approx(0.2815, abs=1e-3)


def test_pixels_lose_nothing(pixel_judge: Judge):
    assert pixel_judge.distance(pixel_judge.images) == pytest.approx(0, abs=1e-6)
    assert pixel_judge.codec_distance() == pytest.approx(0, abs=1e-9)


def test_a_raw_teacher_in_one_step_is_far_from_its_own_samples(judge: Judge, tmp_path: Path):
    teacher = load_network(TEACHER)
    architecture = teacher.architecture.headless()
    state = {k: v for k, v in teacher.state.items() if not k.startswith("logvar")}
    provenance = {"steps": 1, "init_sigma": 2.5, "images_seen": 0}
    save_network(tmp_path / "g", NetworkFolder(architecture, state, teacher.codec, provenance))
    student = judge.student(tmp_path / "g")
    assert student.images.shape == judge.images.shape
    assert student.distance > 1
    assert student.distance == judge.student(tmp_path / "g").distance  # seeds are fixed
    assert student.distance != judge.student(tmp_path / "g", seed=4).distance
    features = [
        FeatureStatistics.of(pixel_features(i)) for i in (student.images, judge.images[1::2])
    ]
    assert student.unseen_half == pytest.approx(frechet_distance(*features))
    assert student.unseen_half != student.distance


def test_the_summary_holds_distances_of_three_seeds_of_the_unseen_half_and_of_all_snapshots():
    judged = [Judgement(torch.empty(0), float(n), float(10 * n)) for n in range(1, 6)]
    curve = {960: 6.0, 0: 7.0, 1920: 3.0}
    assert distances({17: judged[0], 35: judged[1]}, judged[2], judged[3:], curve) == {
        "teacher_fd_17": 1.0,
        "teacher_fd_35": 2.0,
        "student_fd": 3.0,
        "student_fd_seeds": [3.0, 4.0, 5.0],
        "teacher_fd_17_unseen_half": 10.0,
        "teacher_fd_35_unseen_half": 20.0,
        "student_fd_unseen_half": 30.0,
        "student_fd_start": 7.0,
        "student_fd_snapshots": {"0": 7.0, "960": 6.0, "1920": 3.0},
    }


def test_pictures_are_drawn(judge: Judge, tmp_path: Path):
    draw_samples(tmp_path / "s.png", {"real": judge.images, "again": judge.images}, judge.labels)
    draw_curve(
        tmp_path / "c.png", {0: 1.0, 5: 0.3}, {17: 0.2, 35: 0.1, 63: 0.1}, {"codec_fd": 0.01}
    )
    for name in ("s.png", "c.png"):
        assert min(Image.open(tmp_path / name).size) > 100


@pytest.mark.parametrize(
    ("teacher", "shape", "dtype"),
    [(TEACHER, (2, 8, 8), "float32"), (PIXEL_TEACHER, (3, 8, 8), "uint8")],
    ids=["latents", "pixels"],
)
def test_digit_shards_are_what_the_stream_expects(
    teacher: Path, shape: tuple[int, ...], dtype: str, judge: Judge, tmp_path: Path
):
    write_digit_shards(tmp_path / "shards", teacher)
    index = verify_shards(tmp_path / "shards")
    assert index.samples == 1797
    assert (index.sample_shape, index.dtype) == (shape, dtype)
    assert index.class_histogram == tuple(torch.bincount(judge.labels).tolist())


@pytest.mark.distributed
@pytest.mark.parametrize(("preset", "share"), [("digits-pixels", 0.6), ("digits-pixels-gdd", 0.8)])
def test_a_short_run_in_pixels_comes_closer_to_the_digits(
    preset: str, share: float, pixel_judge: Judge, tmp_path: Path
):
    write_digit_shards(tmp_path / "shards", PIXEL_TEACHER)
    run_ranks(1, _distil_in_pixels, preset, tmp_path)
    start, end = (
        pixel_judge.student(tmp_path / "run" / name).distance
        for name in ("snapshots/000000000000", "generator")
    )
    assert end < share * start


def _distil_in_pixels(rank: int, preset: str, folder: Path) -> None:
    overrides = [
        *(f"run_dir={folder / 'run'}", f"data={folder / 'shards'}", "total_images=384"),
        *("micro_batch=64", "learning_rate.ramp_down_images=0", "ema.half_life=100"),
        "log.samples_every_images=0",
    ]
    train(load_config(preset, overrides), joined())
