"""References: EDM2's, EDM's and our own are read; what is none of them is refused, never run."""

import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sid_scale.codecs import CodecError
from sid_scale.data.prepare.files import SourceError
from sid_scale.evaluate.features import INCEPTION, pixel_features
from sid_scale.evaluate.metrics.distances import frechet_distance
from sid_scale.evaluate.references.files import (
    ReferenceFile,
    ReferenceFileError,
    read_reference,
    write_reference,
)
from sid_scale.evaluate.references.find import Reference, find_references
from sid_scale.evaluate.references.real_images import RealImageError
from tests.evaluate.evaluations import evaluate, work
from tests.ranks import run_ranks
from tests.tiny import write_data, write_teacher


def moments(size: int = 300, seed: int = 0) -> dict[str, np.ndarray]:
    features = np.random.default_rng(seed).normal(size=(2 * size, size))
    return {"mu": features.mean(axis=0), "sigma": np.cov(features, rowvar=False)}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_edm2s_pickle_is_read_whatever_the_protocol(tmp_path: Path, protocol: int, order: str):
    held = {"fid": moments(), "fd_dinov2": moments(40, seed=1)}
    held["fid"]["sigma"][0, 1] += 0.5  # not symmetric: rows and columns must not change places
    for part in held.values():
        part["sigma"] = np.asarray(part["sigma"], order=order)
    path = tmp_path / "img512.pkl"
    path.write_bytes(pickle.dumps(held, protocol=protocol))
    found = read_reference(path)
    assert found.moments.keys() == {"fid", "fd_dinov2"}
    for metric, (mu, sigma) in found.moments.items():
        np.testing.assert_array_equal(mu, held[metric]["mu"])
        np.testing.assert_array_equal(sigma, held[metric]["sigma"])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_edms_npz_is_of_fid(tmp_path: Path, save: Callable[..., None], dtype: type):
    """`cifar10-32x32.npz` and its like: `mu` and `sigma` of Inception's 2048 features."""
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(2048, 4))
    held = {"mu": rng.uniform(size=2048), "sigma": factors @ factors.T / 4}
    held = {name: values.astype(dtype) for name, values in held.items()}
    save(tmp_path / "cifar10-32x32.npz", **held)
    read = read_reference(tmp_path / "cifar10-32x32.npz")
    assert read.moments.keys() == {"fid"}
    assert read.about == {}
    for values, expected in zip(read.moments["fid"], held.values(), strict=True):
        np.testing.assert_array_equal(values, expected)


def test_of_adms_npz_only_the_statistics_are_read(tmp_path: Path):
    """Its images, here broken and of a petabyte, are not looked at."""
    path, held = tmp_path / "VIRTUAL_imagenet512.npz", moments(20)
    np.savez(path, **held, mu_s=np.zeros(3), sigma_s=np.eye(3))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("arr_0.npy", header_of((1 << 47, 512, 512, 3), "|u1"))
    found = find_references(["fid"], [path])["fid"]
    np.testing.assert_allclose(found.statistics.cov, held["sigma"])
    assert found.size == 20
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    path.unlink()
    again = Reference(str(path), {}, found.statistics)
    with pytest.raises(ReferenceFileError, match=r"imagenet512\.npz: cannot be read"):
        _ = again.sha256


def header_of(shape: tuple[int, ...], dtype: str) -> bytes:
    header = io.BytesIO()
    described = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()


def test_what_was_written_is_read_back_and_each_metric_takes_the_first_that_has_it(tmp_path: Path):
    one, two = moments(8), moments(8, seed=1)
    features = np.random.default_rng(2).normal(size=(9, 8)).astype(np.float32)
    pair = (one["mu"], one["sigma"])
    write_reference(
        tmp_path / "ours.npz", ReferenceFile({"fd_pixels": pair}, {INCEPTION: features}, {"a": 1})
    )
    np.savez(tmp_path / "edm.npz", **two)
    files = [tmp_path / "ours.npz", tmp_path / "edm.npz"]
    found = find_references(["fid", "fd_pixels", "recall", "is"], files)
    assert found.keys() == {"fid", "fd_pixels", "recall"}
    assert found["fid"].file == str(tmp_path / "edm.npz")
    np.testing.assert_allclose(found["fid"].statistics.cov, two["sigma"])
    np.testing.assert_array_equal(found["recall"].features, features)
    assert found["fd_pixels"].about["a"] == 1


# --- hostile and damaged ------------------------------------------------------------------


class Runs:
    """Unpickled the usual way, it leaves a file behind."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return (open, (str(self.canary), "w"))


@pytest.mark.faults
def test_a_hostile_reference_runs_nothing(tmp_path: Path):
    canary = tmp_path / "canary"
    held = {"fid": {**moments(4), "note": Runs(canary)}}
    path = tmp_path / "img512.pkl"
    path.write_bytes(pickle.dumps(held))
    with pytest.raises(ReferenceFileError, match=r"img512.pkl: before byte \d+: asks for '.*open'"):
        read_reference(path)
    assert not canary.exists()
    pickle.loads(path.read_bytes())["fid"]["note"].close()
    assert canary.exists()  # it would have


@pytest.mark.faults
def test_a_hostile_npz_runs_nothing(tmp_path: Path):
    canary = tmp_path / "canary"
    np.savez(tmp_path / "edm.npz", mu=np.array([Runs(canary)], dtype=object), sigma=np.eye(1))
    with pytest.raises(ReferenceFileError, match="not arrays of numbers"):
        read_reference(tmp_path / "edm.npz")
    assert not canary.exists()


def edm2(**parts: object) -> bytes:
    return pickle.dumps({"fid": {**moments(4), **parts}})


def npz(**arrays: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def deflated_and_damaged() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, mu=np.zeros(400), sigma=np.eye(400))
    contents = bytearray(file.getvalue())
    contents[60:80] = b"\xff" * 20
    return bytes(contents)


def ours(**about: object) -> bytes:
    """A file of our own kind, which says something wrong about itself."""
    moments = {"fd_pixels.mu": np.zeros(2), "fd_pixels.sigma": np.eye(2)}
    return npz(**moments, about=np.array(json.dumps(about)))


def claims_a_petabyte() -> bytes:
    """An array whose header promises far more than follows."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("mu.npy", header_of((1 << 47,), "<f8"))
        archive.writestr("sigma.npy", b"")
    return file.getvalue()


@pytest.mark.faults
@pytest.mark.parametrize(
    ("contents", "complaint"),
    [
        (edm2()[:-40], "the file ends in the middle"),
        (edm2(mu=np.zeros(3)), "of other shapes"),
        (edm2(sigma=np.full((4, 4), np.nan)), "no finite number"),
        (edm2(mu=np.array(["a", "b"])), "mu should be an array of numbers"),
        (edm2(mu=[1.0, 2.0]), "mu should be an array of numbers"),
        (pickle.dumps({"fid": 3}), "should be a dict"),
        (pickle.dumps({"inception": {}}), "statistics of no metric"),
        (npz(a=np.eye(2)), "statistics of no metric"),
        (npz(mu=np.zeros(3), sigma=np.eye(2)), "of other shapes"),
        (npz(mu=np.arange(2), sigma=np.eye(2)), "no finite number"),
        (npz(mu=np.zeros(2), sigma=np.eye(2))[:-60], "damaged"),
        (npz(about=np.array(json.dumps({"format_version": 9}))), "another version"),
        (ours(detectors=None), "make it again"),
        (ours(detectors={"pixels": 3}), "make it again"),
        (ours(resolution="large"), "make it again"),
        (ours(held_out=[1.0]), "make it again"),
        (ours(held_out={"distances": {"fd_pixels": -1.0}}), "make it again"),
        (claims_a_petabyte(), "damaged"),
        (deflated_and_damaged(), "damaged"),
        (
            npz(arr_0=np.zeros((2, 8, 8, 3), np.uint8)),
            "no metric.*`sid-scale evaluate reference` make",
        ),
        (b"", "empty"),
        (b"hello, world", r"no \.npz and no pickle\. `sid-scale evaluate reference` makes"),
    ],
)
def test_what_is_no_reference_ends_in_one_clear_error(
    tmp_path: Path, contents: bytes, complaint: str
):
    path = tmp_path / "reference"
    path.write_bytes(contents)
    with pytest.raises(ReferenceFileError, match=complaint) as told:
        read_reference(path)
    assert str(path) in str(told.value)


@pytest.mark.faults
def test_a_missing_reference_names_the_usual_files(tmp_path: Path):
    with pytest.raises(ReferenceFileError, match=r"EDM2's is named img512\.pkl"):
        read_reference(tmp_path / "nowhere.pkl")


# --- computed here ------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> torch.Tensor:
    """Forty images, as shards in `data` and as PNGs in `pictures`."""
    write_data(tmp_path / "data")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)
    for number, image in enumerate(images):
        folder = tmp_path / "pictures" / f"class{number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{number:03d}.png")
    return torch.from_numpy(images)


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [1, 2])
def test_shards_and_pictures_of_the_same_images_have_the_same_statistics(
    tmp_path: Path, images: torch.Tensor, ranks: int
):
    write_teacher(tmp_path / "teacher")
    run_ranks(ranks, _both, tmp_path)
    expected = pixel_features(images).numpy()
    for name in ("data", "pictures"):
        held = read_reference(tmp_path / f"{name}.npz")
        mu, sigma = held.moments["fd_pixels"]
        np.testing.assert_allclose(mu, expected.mean(axis=0), atol=1e-9)
        np.testing.assert_allclose(sigma, np.cov(expected, rowvar=False), atol=1e-9)
        assert (held.about["images"], held.about["resolution"]) == (40, 8)
    references = (
        find_references(["fd_latents"], [tmp_path / f"{name}.npz"])["fd_latents"].statistics
        for name in ("data", "pictures")
    )
    assert frechet_distance(*references) == pytest.approx(0, abs=1e-9)


def _both(rank: int, folder: Path) -> None:
    for name in ("data", "pictures"):
        words = ["--data", folder / name, "--metrics", "fd_pixels,fd_latents", "--network"]
        out = [folder / "teacher", "--out", folder / f"{name}.npz"]
        work(rank, "reference", [str(word) for word in [*words, *out]])


@pytest.mark.distributed
def test_some_of_the_images_are_spread_over_all(tmp_path: Path, images: torch.Tensor):
    evaluate("reference", "--data", tmp_path / "pictures", "--metrics", "fd_pixels",
             "--num", 10, "--out", tmp_path / "ten.npz")  # fmt: skip
    by_path = sorted(range(40), key=lambda number: (number % 4, number))
    chosen = pixel_features(images[by_path[3::4]]).numpy()
    mu, _ = read_reference(tmp_path / "ten.npz").moments["fd_pixels"]
    np.testing.assert_allclose(mu, chosen.mean(axis=0), atol=1e-9)


@pytest.mark.distributed
def test_a_folder_is_listed_as_for_shards(tmp_path: Path, images: torch.Tensor):
    """Of splits the training images, through links, without what a file server leaves behind."""
    train = tmp_path / "set" / "train"
    train.mkdir(parents=True)
    for folder in (tmp_path / "pictures").iterdir():
        (train / folder.name).symlink_to(folder)
    for junk in ("val/class0/1.png", "train/class0/._1.png", "train/@eaDir/class0/1.png"):
        (tmp_path / "set" / junk).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / junk).write_bytes(b"no image")
    evaluate("reference", "--data", tmp_path / "set", "--metrics", "fd_pixels",
             "--out", tmp_path / "set.npz")  # fmt: skip
    reference = read_reference(tmp_path / "set.npz")
    assert reference.about["images"] == 40
    np.testing.assert_allclose(
        reference.moments["fd_pixels"][0], pixel_features(images).numpy().mean(axis=0), atol=1e-9
    )


@pytest.mark.faults
@pytest.mark.distributed
def test_what_cannot_become_a_reference_is_refused(tmp_path: Path, images: torch.Tensor):
    run_ranks(1, _refused, tmp_path)


def _refused(rank: int, folder: Path) -> None:
    def refused(error: type[Exception], match: str, data: str, *words: str) -> None:
        given = ["--metrics", "fd_pixels", "--out", str(folder / "x.npz"), *words]
        with pytest.raises(error, match=match):
            work(rank, "reference", ["--data", str(folder / data), *given])
        assert not (folder / "x.npz").exists()

    refused(SourceError, "no such folder or archive", "nowhere")
    (folder / "empty").mkdir()
    refused(SourceError, "neither latents nor images", "empty")
    (folder / "one").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "one" / "only.png")
    refused(RealImageError, "one holds fewer than two images", "one")
    refused(CodecError, "--network DIR names", "pictures", "--metrics", "fd_latents")
    odd = folder / "pictures" / "odd.png"
    Image.new("RGB", (8, 9)).save(odd)
    refused(RealImageError, "odd.png: 8x9 pixels; all images must be squares", "pictures")
    refused(RealImageError, "no --crop", "data", "--crop", "8")
    cropped = ["--crop", "4", "--metrics", "fd_pixels", "--out", str(folder / "cropped.npz")]
    work(rank, "reference", ["--data", str(folder / "pictures"), *cropped])
    assert read_reference(folder / "cropped.npz").about["resolution"] == 4
    odd.write_bytes(b"no image")
    refused(RealImageError, r"odd.png: cannot be read", "pictures")
    (folder / "there.npz").touch()
    refused(ReferenceFileError, "--force", "data", "--out", str(folder / "there.npz"))
