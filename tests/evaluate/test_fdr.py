"""FDr: Fréchet distances of all detectors, each divided by that of held-out real images."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sid_scale.cli import main
from sid_scale.evaluate.encoders import open_encoder
from sid_scale.evaluate.features import METRICS, MetricError, check_counts
from sid_scale.evaluate.metrics.distances import FeatureStatistics, frechet_distance
from sid_scale.evaluate.references.files import ReferenceFileError, read_reference
from sid_scale.evaluate.references.real_images import RealImageError
from sid_scale.ranks import Ranks
from tests.evaluate.detectors import write_inception
from tests.evaluate.encoders import CONVNEXT, VIT, write_encoder
from tests.evaluate.evaluations import read, work
from tests.generators.tiny import demo_generator
from tests.timm_beside import make_timm_importable

SMALL = f"{VIT}@32"


def pictures(folder: Path, seed: int, count: int = 30, size: int = 32) -> torch.Tensor:
    drawn = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    folder.mkdir()
    for number, pixels in enumerate(drawn):
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return torch.from_numpy(drawn).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, ranks: Ranks) -> Path:
    make_timm_importable()
    place = tmp_path_factory.mktemp("fdr")
    demo_generator(place / "generator")
    write_inception(place / "inception.pt")
    write_encoder(place / "vit", VIT)
    write_encoder(place / "convnext", CONVNEXT)
    pictures(place / "real", seed=0)
    pictures(place / "held", seed=1)
    reference(place, "real.npz", "--held-out", place / "held")
    return place


def detectors(place: Path) -> list[object]:
    encoders = [f"{SMALL}={place / 'vit'}", f"{CONVNEXT}@32={place / 'convnext'}"]
    return ["--inception", place / "inception.pt", "--encoder", *encoders]


def reference(place: Path, name: str, *words: object) -> None:
    metrics = f"fdr,kd_{SMALL},mind_pixels,fd_pixels"
    given = ["--data", place / "real", "--metrics", metrics, "--out", place / name]
    work(0, "reference", [str(word) for word in [*given, *detectors(place), *words]])


def measure(
    place: Path, out: Path, metrics: str, *words: object, reference: str = "real.npz"
) -> None:
    given = ["--generator", place / "generator", "--metrics", metrics, "--num", 20, "--out", out]
    given += ["--reference", place / reference, *detectors(place)]
    work(0, "run", [str(word) for word in [*given, *words]])


@pytest.fixture(scope="module")
def measured(place: Path) -> Path:
    measure(place, place / "out", f"fdr,kd_{SMALL},mind_pixels,fd_pixels", "--save-features")
    return place / "out"


def test_it_is_the_mean_ratio_to_held_out_images_over_all_detectors(place: Path, measured: Path):
    """arXiv 2604.28190, eq. 7 and 8."""
    figures = read(measured)
    members = ["fid", f"fd_{SMALL}", f"fd_{CONVNEXT}@32"]
    assert figures["fdr_ratios"].keys() == set(members)  # not fd_pixels, which needs no detector
    held_out = read_reference(place / "real.npz").about["held_out"]
    ratios = [figures[member] / held_out["distances"][member] for member in members]
    assert list(figures["fdr_ratios"].values()) == pytest.approx(ratios)
    assert figures["fdr"] == pytest.approx(np.mean(ratios))
    assert held_out["images"] == 30


def test_what_held_out_images_are_worth_is_measured_with_the_same_encoder(place: Path):
    encoder = open_encoder(SMALL, place / "vit", torch.device("cpu"))
    with torch.no_grad():
        real, held = (
            FeatureStatistics.of(encoder(pictures(place / f"again{seed}", seed)).numpy())
            for seed in (0, 1)
        )
    known = read_reference(place / "real.npz").about["held_out"]["distances"]
    assert known[f"fd_{SMALL}"] == pytest.approx(frechet_distance(real, held), rel=1e-4)


def test_an_encoders_kernel_distance_and_features_are_there_too(place: Path, measured: Path):
    figures = read(measured)
    assert figures["detectors"][f"kd_{SMALL}"]["file"] == str(place / "vit")
    assert np.load(measured / "features" / f"kd_{SMALL}.npy").shape == (20, 64)
    assert not (measured / "features" / "fdr.npy").exists()
    before = (measured / "metrics.json").stat()
    measure(place, measured, "fdr", "--save-features")  # there already
    after = (measured / "metrics.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_of_the_features_in_a_file_only_those_that_are_wanted_are_read(place: Path):
    held = read_reference(place / "real.npz", kinds=())
    assert held.features == {}
    assert set(held.not_read) == {SMALL, "pixels"}
    assert read_reference(place / "real.npz").features[SMALL].shape == (30, 64)


@pytest.mark.faults
def test_what_fdr_lacks_is_told(place: Path, tmp_path: Path):
    with pytest.raises(MetricError, match="held-out real images: name them by --held-out DIR"):
        reference(place, "without.npz")
    with pytest.raises(RealImageError, match="held: for fd_pixels the same images as"):
        reference(place, "same.npz", "--data", place / "held", "--held-out", place / "held")
    with pytest.raises(MetricError, match="--held-out serves fdr and Fréchet distances"):
        reference(place, "kid.npz", "--metrics", "kid", "--held-out", place / "held")
    pictures(tmp_path / "large", seed=2, count=2, size=40)
    with pytest.raises(RealImageError, match="large: images of 40x40, the others are 32x32"):
        reference(place, "large.npz", "--held-out", tmp_path / "large")
    pictures(tmp_path / "one", seed=2, count=1)
    with pytest.raises(RealImageError, match="one holds fewer than two images"):
        reference(place, "one.npz", "--held-out", tmp_path / "one")

    reference(place, "no-ratio.npz", "--metrics", f"fid,fd_{SMALL},fd_{CONVNEXT}@32")
    with pytest.raises(ReferenceFileError, match=r"fid by .*/no-ratio.npz does not say it"):
        measure(place, tmp_path / "out", "fdr", reference="no-ratio.npz")


@pytest.mark.faults
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metrics", "fdr"], "error: fdr is a mean over detectors, and none is given"),
        (["--metrics", "kidd"], "error: metrics: there is no 'kidd'; did you mean 'kid'"),
        (["--metrics", "fd_vit"], "; --encoder vit=FILE gives it, if vit is a network of timm's"),
        (["--encoder", "vit=a", "vit=b"], "error: --encoder vit: two files, a and b"),
        (["--encoder", "vit"], "error: argument --encoder: 'vit': expected NAME=FILE"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_at_once(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = ["--generator", str(tmp_path), "--out", str(tmp_path), *words]
    with contextlib.suppress(SystemExit):  # of argparse
        assert main(["evaluate", "run", *given]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.faults
def test_too_few_images_for_a_metric_are_told_before_anything_is_made(place: Path, tmp_path: Path):
    with pytest.raises(MetricError, match="coverage: 5 generated images; it takes at least 6"):
        check_counts(["kid", "coverage"], 5, {"coverage": 50})
    with pytest.raises(MetricError, match="recall: 3 real images; it takes at least 4"):
        check_counts(["recall"], 50, {"recall": 3})
    check_counts(METRICS, 6, {})
    reference(place, "few.npz", "--metrics", "density", "--num", "5")
    with pytest.raises(MetricError, match="density: 5 real images; it takes at least 6"):
        measure(place, tmp_path / "out", "density", reference="few.npz")
    assert not (tmp_path / "out").exists()
