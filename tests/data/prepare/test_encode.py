"""Encoding: the latents of the crop of each image, whoever encodes it and in whatever company."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sid_scale.codecs import IdentityCodec, VAECodec, open_codec, read_codec, stability_vae
from sid_scale.data.prepare.build import ShardBuild, Share
from sid_scale.data.prepare.encode import Encoder, Encoding, EncodingError, encode, plan_encoding
from sid_scale.data.prepare.files import SourceError
from sid_scale.data.prepare.images import centre_crop
from sid_scale.data.prepare.shard_writer import write_shards
from sid_scale.data.prepare.sources import open_source
from sid_scale.data.shards import ShardError, ShardIndex, read_shard
from sid_scale.demo.prepare import ASSETS, TEACHER
from tests.sources import contents, digits, latents, png, samples, write_folder, write_zip

ENCODING = {
    "resolution": 32,
    "flip": False,
    "vae_dtype": "float32",
    "dtype": "float32",
    "shard_bytes": 25_000,
    "seed": 0,
    "batch_size": 4,
    "threads": 2,
}


def codec() -> VAECodec:
    opened = read_codec(TEACHER)
    assert isinstance(opened, VAECodec)
    return opened


def make(source: Path, out: Path, parts: int = 1, **changes: Any) -> ShardIndex | None:
    """Encodes in so many parts, the last one first."""
    encoding = Encoding(**{**ENCODING, **changes})
    encoder = Encoder(codec(), encoding, torch.device("cpu"))
    opened = open_source(source)
    plan = plan_encoding(opened, encoder.codec, encoding, encoder)
    index, told = None, 0

    def done(count: int) -> None:
        nonlocal told
        told += count

    for number in reversed(range(parts)):
        making = ShardBuild(out, plan, Share(number, parts))
        with making.claimed():
            encode(opened, making, encoding, encoder, done)
            index = making.finish()
            making.check_refused()
    assert told == plan.samples
    return index


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images", digits())


def pixels_of(folder: Path) -> dict[str, np.ndarray]:
    source = open_source(folder)
    with source.part(np.arange(len(source))).open() as raws:
        return {raw.key: raw.load() for raw in raws}


def encoded(pixels: np.ndarray) -> np.ndarray:
    image = torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())
    return codec().encode(image)[0].numpy()


def test_each_image_becomes_the_posterior_of_its_crop(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = {
        f"c{n % 2}/{n}": rng.integers(0, 256, (40 + 30 * n, 50, 3), np.uint8) for n in range(4)
    }
    folder = write_folder(tmp_path / "set", {f"{k}.png": png(v) for k, v in pictures.items()})
    index = make(folder, tmp_path / "out")
    assert index is not None
    assert (index.sample_shape, index.class_histogram) == ((2, 8, 8), (2, 2))
    assert open_codec(index.codec).describe() == codec().describe()
    found = samples(tmp_path / "out")
    assert found.keys() == pictures.keys()
    for key, (stored, label) in found.items():
        assert label == int(key[1])
        np.testing.assert_allclose(
            stored, encoded(centre_crop(pictures[key], 32)), rtol=1e-4, atol=1e-4
        )


def test_flips_are_the_images_mirrored_and_spread_over_all_shards(
    images: Path, tmp_path: Path
) -> None:
    index = make(images, tmp_path / "out", flip=True)
    assert index is not None
    assert index.samples == 48
    assert index.class_histogram == (12,) * 4
    found, pixels = samples(tmp_path / "out"), pixels_of(images)
    for key, image in pixels.items():
        for name, wanted in ((key, image), (f"{key}_flipped", image[:, ::-1])):
            np.testing.assert_allclose(found[name][0], encoded(wanted), rtol=1e-4, atol=1e-4)
    first = {record.key for record in read_shard(tmp_path / "out", index.shards[0])}
    assert 0 < sum(key.endswith("_flipped") for key in first) < len(first)


@pytest.mark.parametrize(("parts", "batch_size", "threads"), [(2, 4, 2), (3, 7, 1)])
def test_the_number_of_parts_and_the_company_do_not_change_a_byte(
    images: Path, tmp_path: Path, parts: int, batch_size: int, threads: int
) -> None:
    make(images, tmp_path / "one")
    make(images, tmp_path / "many", parts, batch_size=batch_size, threads=threads)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_a_zip_and_pixel_shards_give_the_same_latents_as_the_folder(
    images: Path, tmp_path: Path
) -> None:
    make(images, tmp_path / "out", flip=True)
    wanted = samples(tmp_path / "out")
    pixels = pixels_of(images)
    write_shards(
        tmp_path / "pixels",
        (
            (
                key,
                image.transpose(2, 0, 1),
                int(key[8]),
            )
            for key, image in pixels.items()
        ),
        codec=IdentityCodec().describe(),
        num_classes=4,
        shard_samples=7,
        dtype="uint8",
    )
    packed = write_zip(tmp_path / "set.zip", digits())
    for source, out in ((tmp_path / "pixels", tmp_path / "a"), (packed, tmp_path / "b")):
        make(source, out, parts=2, flip=True)
        found = samples(out)
        assert found.keys() == wanted.keys()
        for key, (stored, label) in found.items():
            np.testing.assert_array_equal(stored, wanted[key][0])
            assert label == wanted[key][1]


def test_half_precision_is_near_and_another_plan(images: Path, tmp_path: Path) -> None:
    make(images, tmp_path / "whole")
    make(images, tmp_path / "half", vae_dtype="bfloat16", dtype="float16")
    whole, half = samples(tmp_path / "whole"), samples(tmp_path / "half")
    for key, (stored, _) in whole.items():
        assert half[key][0].dtype == np.float16
        np.testing.assert_allclose(half[key][0], stored, atol=0.05 * np.abs(stored).max())
    with pytest.raises(ShardError, match=r"transform.*bfloat16.*there"):
        make(images, tmp_path / "half", dtype="float16")


@pytest.mark.faults
def test_all_damaged_images_of_a_shard_are_named(tmp_path: Path) -> None:
    files = digits()
    bad = sorted(files)[3], sorted(files)[20]
    folder = write_folder(tmp_path / "set", files | {name: files[name][:60] for name in bad})
    with pytest.raises(ShardError) as caught:
        make(folder, tmp_path / "out", shard_bytes=10**6)
    for name in bad:
        assert f"{folder}: {name}: no sound image" in str(caught.value)
    assert not list((tmp_path / "out").glob("*.tar"))


@pytest.mark.faults
def test_latents_that_are_not_finite_are_refused_by_key(images: Path, tmp_path: Path) -> None:
    encoding = Encoding(**ENCODING)
    encoder = Encoder(codec(), encoding, torch.device("cpu"))
    source = open_source(images)
    making = ShardBuild(tmp_path / "out", plan_encoding(source, codec(), encoding, encoder))
    for parameter in encoder.codec._vae.parameters():
        parameter.fill_(float("nan"))
    with making.claimed():
        encode(source, making, encoding, encoder, lambda count: None)
    with pytest.raises(ShardError, match=r"\.PNG: sample 'n.*NaN"):
        making.check_refused()


@pytest.mark.faults
def test_what_cannot_be_encoded_so_is_told_before_it_begins(images: Path, tmp_path: Path) -> None:
    encoding = Encoding(**ENCODING)
    other = stability_vae(ASSETS / "vae")
    encoder = Encoder(other, encoding, torch.device("cpu"))
    with pytest.raises(EncodingError, match="latents of 1 channels, and the codec describes 4"):
        plan_encoding(open_source(images), other, encoding, encoder)
    with pytest.raises(SourceError, match="`sid-scale shards` makes shards of them"):
        make(write_zip(tmp_path / "set.zip", latents()), tmp_path / "out")
