"""The demo's judgement of a generator folder."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from sid_scale.data.prepare.verify import verify_shards
from sid_scale.demo.judge import Judge, draw_curve, draw_samples
from sid_scale.demo.prepare import TEACHER, write_digit_shards
from sid_scale.networks.folder import NetworkFolder, load_network, save_network


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(TEACHER)


def test_real_digits_are_at_distance_zero(judge: Judge):
    assert judge.distance(judge.images) == pytest.approx(0, abs=1e-6)
    assert 0 < judge.codec_distance() < 0.02


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


def test_pictures_are_drawn(judge: Judge, tmp_path: Path):
    draw_samples(tmp_path / "s.png", {"real": judge.images, "again": judge.images}, judge.labels)
    draw_curve(
        tmp_path / "c.png", {0: 1.0, 5: 0.3}, {17: 0.2, 35: 0.1, 63: 0.1}, {"codec_fd": 0.01}
    )
    for name in ("s.png", "c.png"):
        assert min(Image.open(tmp_path / name).size) > 100


def test_digit_shards_are_what_the_stream_expects(judge: Judge, tmp_path: Path):
    write_digit_shards(tmp_path / "shards", judge.codec)
    index = verify_shards(tmp_path / "shards")
    assert index.samples == 1797
    teacher = load_network(TEACHER).architecture
    size = teacher.img_resolution
    assert index.sample_shape == (2 * teacher.img_channels, size, size)
    assert index.class_histogram == tuple(torch.bincount(judge.labels).tolist())
