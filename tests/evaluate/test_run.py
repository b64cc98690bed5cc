"""An evaluation of a generator: figures that anybody can check, on any number of ranks."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import linalg
from scipy.spatial.distance import cdist

from sid_scale.cli import main
from sid_scale.evaluate.blocks import BlockError
from sid_scale.evaluate.features import METRICS, NEIGHBOURS, MetricError, check_metrics
from sid_scale.evaluate.references.files import ReferenceFileError
from tests.conftest import ROOT
from tests.evaluate.detectors import write_inception
from tests.evaluate.evaluations import evaluate, read, work
from tests.generators.tiny import demo_generator, tiny_generator
from tests.programs import python
from tests.ranks import run_ranks
from tests.tiny import write_data

pytestmark = pytest.mark.distributed

NUM = 300  # two blocks
# DINOv2 is in test_detectors.py: each rank would take seconds to import transformers. FDr needs
# held-out images: it is in test_fdr.py.
MEASURED = tuple(m for m in METRICS if not m.endswith("dinov2") and m != "fdr")
ALL = ",".join(MEASURED)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator of digits with its VAE, real digits, detectors, and a reference for all."""
    from sid_scale.demo.prepare import TEACHER, write_digit_shards

    place = tmp_path_factory.mktemp("evaluation")
    demo_generator(place / "generator", images_seen=5)
    write_digit_shards(place / "shards", TEACHER)
    write_inception(place / "inception.pt")
    evaluate(
        *("reference", "--data", place / "shards", "--metrics", ALL, "--num", 400),
        *("--out", place / "real.npz", "--inception", place / "inception.pt"),
    )
    return place


def common(place: Path) -> list[object]:
    return ["--generator", place / "generator", "--reference", place / "real.npz"]


@pytest.fixture(scope="module")
def on_ranks(place: Path) -> dict[int, Path]:
    """The same evaluation on one, two and three ranks."""
    outs = {ranks: place / f"out{ranks}" for ranks in (1, 2, 3)}
    for ranks, out in outs.items():
        words = [*common(place), "--metrics", ALL, "--num", NUM, "--out", out, "--save-features"]
        evaluate("run", *words, "--inception", place / "inception.pt", ranks=ranks)
    return outs


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("metric", ["fid", "fd_pixels", "fd_latents"])
def test_distances_agree_with_scipy_on_the_features_that_were_saved(
    place: Path, on_ranks: dict[int, Path], ranks: int, metric: str
):
    real = np.load(place / "real.npz")
    mu, sigma = real[f"{metric}.mu"], real[f"{metric}.sigma"]
    features = np.load(on_ranks[ranks] / "features" / f"{metric}.npy").astype(np.float64)
    assert features.shape == (NUM, mu.size)
    cov = np.cov(features, rowvar=False)
    root = linalg.sqrtm(cov @ sigma).real
    expected = np.square(features.mean(axis=0) - mu).sum() + np.trace(cov + sigma - 2 * root)
    assert read(on_ranks[ranks])[metric] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_inception_score_is_the_mean_over_ten_parts(on_ranks: dict[int, Path], ranks: int):
    p = np.load(on_ranks[ranks] / "features" / "is.npy").astype(np.float64)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    parts = np.split(p, 10)
    scores = [np.exp((q * np.log(q / q.mean(axis=0))).sum(axis=1).mean()) for q in parts]
    assert read(on_ranks[ranks])["is"] == pytest.approx(np.mean(scores), rel=1e-5)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_precision_and_recall_count_who_lies_within_three_neighbours(
    place: Path, on_ranks: dict[int, Path], ranks: int
):
    real = np.load(place / "real.npz")["precision.features"].astype(np.float64)
    made = np.load(on_ranks[ranks] / "features" / "recall.npy").astype(np.float64)
    radius = {
        name: np.sort(cdist(x, x), axis=1)[:, 3] for name, x in (("real", real), ("made", made))
    }
    between = cdist(made, real)
    measured = read(on_ranks[ranks])
    assert measured["precision"] == (between <= radius["real"]).any(axis=1).mean()
    assert measured["recall"] == (radius["made"] >= between.T).any(axis=1).mean()
    assert 0 < measured["precision"] < 1


@pytest.mark.parametrize("metric", ["kid", "kd_latents"])
def test_kernel_distances_are_the_unbiased_estimate_over_all_pairs(
    place: Path, on_ranks: dict[int, Path], metric: str
):
    name = "precision" if metric == "kid" else "latents"
    real = np.load(place / "real.npz")[f"{name}.features"].astype(np.float64)
    made = np.load(on_ranks[1] / "features" / f"{metric}.npy").astype(np.float64)
    rr, mm, rm = (
        (a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((real, real), (made, made), (real, made))
    )
    np.fill_diagonal(rr, 0)
    np.fill_diagonal(mm, 0)
    n, m = len(real), len(made)
    expected = rr.sum() / (n * (n - 1)) + mm.sum() / (m * (m - 1)) - 2 * rm.mean()
    assert read(on_ranks[1])[metric] == pytest.approx(expected, rel=1e-6)


def test_figures_are_the_same_to_the_last_bit_on_any_number_of_ranks(on_ranks: dict[int, Path]):
    one, two, three = ({m: read(out)[m] for m in MEASURED} for out in on_ranks.values())
    assert one == two == three
    for metric in MEASURED:
        saved = [np.load(out / "features" / f"{metric}.npy") for out in on_ranks.values()]
        assert np.array_equal(saved[0], saved[1])
        assert np.array_equal(saved[0], saved[2])


def test_what_was_measured_is_said(place: Path, on_ranks: dict[int, Path]):
    measured = read(on_ranks[2])
    assert (measured["num"], measured["first_seed"]) == (NUM, 0)
    assert measured["network"]["kind"] == "generator"
    assert measured["network"]["images_seen"] == 5
    assert measured["network"]["evaluations"] == 1
    assert len(measured["network"]["sha256"]) == 64
    assert measured["references"]["fid"]["file"] == str(place / "real.npz")
    assert measured["detectors"].keys() == {"fid", "kid", "mind", "is", *NEIGHBOURS}
    assert measured["settings"]["ranks"] == 2
    assert not (on_ranks[2] / "blocks").exists()


def test_images_are_those_that_generate_makes(place: Path, on_ranks: dict[int, Path]):
    from sid_scale import OneStepGenerator
    from sid_scale.evaluate.features import pixel_features
    from sid_scale.evaluate.samplers import classes_of

    seeds = range(250, 262)  # across the border of two blocks
    classes = classes_of(seeds, [1] * 10)
    images = OneStepGenerator.from_pretrained(place / "generator").generate(classes, seeds)
    saved = np.load(on_ranks[1] / "features" / "fd_pixels.npy")[250:262]
    np.testing.assert_allclose(saved, pixel_features(images).numpy(), atol=1e-3)


def test_classes_are_a_function_of_the_seed_and_uniform():
    from sid_scale.evaluate.samplers import classes_of

    classes = classes_of(range(20_000), [1] * 10)
    assert classes[500:510] == classes_of(range(500, 510), [1] * 10)
    assert min(np.bincount(classes)) > 1_850


# --- repeats ------------------------------------------------------------------------------


def test_repeats_take_the_next_seeds_and_tell_mean_minimum_and_deviation(
    place: Path, tmp_path: Path
):
    run_ranks(1, _repeats, place, tmp_path)


def _repeats(rank: int, place: Path, folder: Path) -> None:
    def measure(name: str, *words: object) -> dict:
        given = [*common(place), "--metrics", "fd_latents", "--num", 70, "--out", folder / name]
        work(rank, "run", [str(word) for word in [*given, *words]])
        return read(folder / name)

    measured = measure("all", "--first-seed", 10, "--repeats", 3, "--save-features")
    alone = [measure(str(s), "--first-seed", s)["fd_latents"] for s in (10, 80, 150)]
    told = measured["repeats"]["fd_latents"]
    assert told["values"] == pytest.approx(alone, rel=1e-9)
    assert measured["fd_latents"] == told["mean"] == pytest.approx(np.mean(alone))
    assert told["min"] == min(told["values"])
    assert told["std"] == pytest.approx(np.std(alone, ddof=1))
    assert np.load(folder / "all" / "features" / "fd_latents.npy").shape[0] == 210


# --- interruptions ------------------------------------------------------------------------


# An evaluation that is killed when two of its blocks are written.
KILLED = """
import os, signal, sys
from sid_scale.cli import main
from sid_scale.evaluate.blocks import BlockStore

def counted(store, block, features, write=BlockStore.write, written=[]):
    write(store, block, features)
    written.append(block)
    if len(written) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

BlockStore.write = counted
sys.exit(main(["evaluate", "run", *sys.argv[1:]]))
"""


@pytest.mark.faults
def test_a_killed_evaluation_goes_on_from_the_blocks_that_are_there(place: Path, tmp_path: Path):
    out, whole = tmp_path / "killed", tmp_path / "whole"
    words = [*common(place), "--metrics", "fd_latents,fd_pixels", "--num", 1300]
    command = [sys.executable, "-c", KILLED, *map(str, words), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    killed = subprocess.run(command, env=environment, stderr=subprocess.DEVNULL)
    assert killed.returncode == -signal.SIGKILL
    there = sorted((out / "blocks").glob("0*.pixels.npy"))
    assert len(there) == 2
    # What is there is not made again: a mark in it survives into the saved features.
    marked = np.load(there[0])
    marked[0, :] = 0.5
    np.save(there[0], marked)
    there[1].write_bytes(there[1].read_bytes()[:-100])  # but a damaged one is
    for folder in (out, whole):
        evaluate("run", *words, "--out", folder, "--save-features", ranks=2)
    ours, theirs = (np.load(o / "features" / "fd_pixels.npy") for o in (out, whole))
    assert (ours[0] == 0.5).all()
    assert np.array_equal(ours[1:], theirs[1:])
    assert read(out)["fd_latents"] == read(whole)["fd_latents"]


@pytest.mark.faults
def test_a_folder_takes_one_evaluation_only(place: Path, tmp_path: Path):
    run_ranks(1, _one_evaluation_only, place, tmp_path)


def _one_evaluation_only(rank: int, place: Path, folder: Path) -> None:
    words = [*common(place), "--metrics", "fd_latents", "--num", 64, "--out", folder / "out"]
    quick = [str(word) for word in words]
    work(rank, "run", quick)
    before = (folder / "out" / "metrics.json").stat()
    work(rank, "run", quick)  # there already
    after = (folder / "out" / "metrics.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    work(rank, "run", [*quick, "--num", "32"])  # of the same generator: taken
    assert read(folder / "out")["num"] == 32
    assert {p.name for p in (folder / "out").iterdir()} == {"metrics.json", "recipe.json"}
    with pytest.raises(BlockError, match=r"made otherwise: inputs\.steps 1 there, 2 now\. "):
        work(rank, "run", [*quick, "--steps", "2"])
    (folder / "file").touch()
    with pytest.raises(BlockError, match="cannot be used"):
        work(rank, "run", [*quick, "--out", str(folder / "file")])
    (folder / "out" / "recipe.json").write_text("{")
    with pytest.raises(BlockError, match=r"recipe\.json: damaged"):
        work(rank, "run", quick)


# --- mistakes -----------------------------------------------------------------------------


@pytest.mark.faults
def test_a_missing_detector_is_told_once_before_anything_is_made(place: Path, tmp_path: Path):
    words = [*common(place), "--metrics", "fid", "--num", 50, "--out", tmp_path / "out"]
    done = python("-m", "sid_scale", "evaluate", "run", *words)
    assert done.returncode == 1
    for told in ("inception-2015-12-05.pt", "--inception FILE", "evaluation.inception"):
        assert done.stderr.count("error: metrics fid: need") == 1
        assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.faults
def test_a_reference_of_something_else_is_refused_before_sampling(place: Path, tmp_path: Path):
    run_ranks(1, _other_references, place, tmp_path)


def _other_references(rank: int, place: Path, folder: Path) -> None:
    def refused(match: str, *words: object) -> None:
        given = ["--num", "50", "--out", folder / "out", *words]
        with pytest.raises(ReferenceFileError, match=match):
            work(rank, "run", [str(word) for word in given])
        assert not (folder / "out").exists()

    tiny_generator(folder / "tiny")
    ours = ["--generator", place / "generator", "--reference"]
    refused("64 features, here are 192", "--generator", folder / "tiny", "--reference",
            place / "real.npz", "--metrics", "fd_latents")  # fmt: skip
    refused("of images of 32x32, the network's are 8x8", "--generator", folder / "tiny",
            "--reference", place / "real.npz", "--metrics", "fd_pixels")  # fmt: skip
    write_data(folder / "data")
    data = ["--data", folder / "data", "--metrics", "fd_pixels", "--out", folder / "p.npz"]
    work(rank, "reference", [str(word) for word in data])
    refused("fd_latents needs a reference, and none has it .*p.npz has fd_pixels",
            *ours, folder / "p.npz", "--metrics", "fd_latents")  # fmt: skip
    write_inception(folder / "other.pt", seed=1)
    refused("with another detector", *ours, place / "real.npz", "--metrics", "fid",
            "--inception", folder / "other.pt")  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images", "1"], "error: --num 1 is below 2: one image has no spread\n"),
        (["--repeats", "0"], "error: --repeats 0 is below 1\n"),
    ],
)
def test_counts_that_give_no_figure_are_refused_at_once(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = ["--generator", "g", "--out", str(tmp_path), *words]
    assert main(["evaluate", "run", *given]) == 2
    assert capsys.readouterr().err == message


def test_unknown_metrics_are_named_with_the_nearest():
    with pytest.raises(MetricError, match="no 'fdi'; did you mean 'fid'"):
        check_metrics(["fdi"])
    assert check_metrics(["is", "fid", "is"]) == ("is", "fid")
