"""Samples and the real images nearest to them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sid_scale.codecs import open_codec
from sid_scale.data.prepare.shard_writer import write_shards
from sid_scale.data.shards import INDEX
from sid_scale.demo.digits import digit_images
from sid_scale.demo.prepare import TEACHER
from sid_scale.errors import SidScaleError
from sid_scale.generators.generator import OneStepGenerator
from sid_scale.networks.folder import load_network
from sid_scale.report import neighbours
from sid_scale.report.classes import class_rows
from sid_scale.report.neighbours import Features, Shortlist, find_neighbours
from tests.generators.tiny import demo_generator, save_generator, tiny_generator
from tests.tiny import ARCHITECTURE, tiny_folder, write_data

DIGITS, A_CLASS = 400, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator of digits and the digits' shards."""
    folder = tmp_path_factory.mktemp("digits")
    demo_generator(folder / "generator")
    codec = open_codec(load_network(TEACHER).codec, beside=TEACHER)
    images, labels = (tensor[:DIGITS] for tensor in digit_images())
    stored = codec.encode(images).numpy()
    write_shards(
        folder / "shards",
        ((f"digit{i}", stored[i], int(labels[i])) for i in range(DIGITS)),
        codec=codec.describe(),
        num_classes=10,
        shard_samples=100,
    )
    return folder


@pytest.fixture(autouse=True)
def _few_samples_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "SAMPLES_A_CLASS", A_CLASS)


def test_the_shortlist_is_what_a_sort_of_everything_gives(monkeypatch: pytest.MonkeyPatch):
    draw = torch.Generator().manual_seed(0)
    queries, everything = (torch.randn(n, 2, 4, 4, generator=draw) for n in (5, 100))
    labels = torch.arange(100)
    shortlist = Shortlist(torch.cat([queries, everything[:1]]), itself=[-1] * 5 + [0])
    for first in range(0, 100, 7):
        part = everything[first : first + 7]
        shortlist.inspect(part.flatten(1), part, labels[first : first + 7], first)
    distances = torch.cdist(queries.flatten(1), everything.flatten(1))
    nearest = distances.argsort(dim=1)[:, : neighbours.SHORTLIST]
    assert torch.equal(shortlist.labels[:5], nearest)
    assert torch.equal(shortlist.latents[:5], everything[nearest])
    assert 0 not in shortlist.labels[5]  # nothing is its own neighbour


def test_a_copy_of_a_real_image_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch):
    generator = OneStepGenerator.from_pretrained(folder / "generator")
    real = next(neighbours.real_latents(
        generator, folder / "shards", neighbours.read_index(folder / "shards"), 300
    ))  # fmt: skip
    made = generator.sample_latents

    def memorised(classes, seeds):
        latents = made(classes, seeds)
        latents[1] = real[0][200] + 1e-4
        return latents

    monkeypatch.setattr(generator, "sample_latents", memorised)
    found = find_neighbours(generator, folder / "shards", shown=3, limit=300)
    assert (found.searched, found.total) == (300, DIGITS)
    assert found.samples[1].neighbours[0].label == int(real[1][200])
    assert found.samples[1].neighbours[0].distance < 0.5 < found.samples[0].neighbours[0].distance
    assert found.real_compared == 3
    assert found.real_distance > 5
    for sample in found.samples:
        distances = [near.distance for near in sample.neighbours]
        assert distances == sorted(distances)
        assert len(distances) == neighbours.NEIGHBOURS
        assert all(near.image.shape == sample.image.shape for near in sample.neighbours)


def test_digits_class_by_class(folder: Path):
    generator = OneStepGenerator.from_pretrained(folder / "generator")
    found = find_neighbours(generator, folder / "shards", shown=2, limit=2000)
    assert found.searched == DIGITS
    assert found.has_vae
    assert found.generated is not None
    assert found.real is not None
    rows = class_rows(found.generated, found.real, 10)
    assert [row.real for row in rows] == torch.bincount(digit_images()[1][:DIGITS]).tolist()
    assert all(row.generated == A_CLASS for row in rows)
    assert np.mean([row.own_class_real for row in rows]) > 0.9
    assert np.mean([row.own_class for row in rows]) > 0.5
    assert all(0 < row.variety < 2 for row in rows)


def test_classes_are_judged_by_nearness_and_variety():
    real = Features(torch.tensor([[0.0], [1.0], [10.0], [14.0]]), torch.tensor([0, 0, 1, 1]))
    generated = Features(torch.tensor([[0.5], [0.5], [9.0], [0.1]]), torch.tensor([0, 0, 1, 1]))
    same, astray = class_rows(generated, real, 2)
    assert (same.real, same.generated, same.own_class) == (2, 2, 1.0)
    assert (same.nearest, same.nearest_real, same.variety) == (0.5, 1.0, 0.0)
    assert (astray.own_class, astray.own_class_real) == (0.5, 1.0)
    assert astray.variety == pytest.approx(8.9 / 4)


def test_a_class_without_images_has_no_figures():
    real = Features(torch.tensor([[0.0]]), torch.tensor([0]))
    generated = Features(torch.tensor([[0.5], [1.0]]), torch.tensor([0, 1]))
    alone, absent = class_rows(generated, real, 2)
    assert (alone.own_class, absent.own_class, absent.real) == (1.0, 0.0, 0)
    assert np.isnan([alone.nearest_real, alone.variety, absent.nearest_real]).all()


def test_pixel_models_need_no_vae(tmp_path: Path):
    generator = OneStepGenerator.from_pretrained(tiny_generator(tmp_path / "generator"))
    found = find_neighbours(generator, write_data(tmp_path / "data"), shown=3, limit=7)
    assert (found.searched, found.total, len(found.samples)) == (7, 40, 3)
    assert not found.has_vae


def test_a_generator_without_classes_is_compared_with_data_that_have_some(tmp_path: Path):
    architecture = replace(ARCHITECTURE, label_dim=0)
    folder = save_generator(tmp_path / "generator", tiny_folder(architecture=architecture))
    generator = OneStepGenerator.from_pretrained(folder)
    found = find_neighbours(generator, write_data(tmp_path / "data"), shown=3, limit=40)
    assert found.searched == 40
    assert {near.label for sample in found.samples for near in sample.neighbours} == {0}
    assert found.num_classes == 0


def test_data_of_another_kind_is_refused(tmp_path: Path, folder: Path):
    generator = OneStepGenerator.from_pretrained(tiny_generator(tmp_path / "generator"))
    with pytest.raises(SidScaleError, match=r"codec vae; the generator wants"):
        find_neighbours(generator, folder / "shards", shown=3, limit=7)


def test_a_damaged_shard_is_one_clear_error(tmp_path: Path):
    generator = OneStepGenerator.from_pretrained(tiny_generator(tmp_path / "generator"))
    data = write_data(tmp_path / "data")
    first = min(data.glob("*.tar"))
    first.write_bytes(first.read_bytes()[:700].ljust(first.stat().st_size, b"\0"))
    with pytest.raises(SidScaleError, match=first.name):
        find_neighbours(generator, data, shown=3, limit=1000)
    (data / INDEX).unlink()
    with pytest.raises(SidScaleError, match="no index"):
        find_neighbours(generator, data, shown=3, limit=1000)
