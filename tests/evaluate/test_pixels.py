"""Pixel models through the public commands: EDM's networks, its samplers, its reference files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor

from sid_scale.cli import main
from sid_scale.data.labels import LabelsError
from sid_scale.diffusion.heun import SamplerSettings, denoiser, edm_sample, heun_sample
from sid_scale.diffusion.noise import SeededNoise
from sid_scale.evaluate.samplers import class_histogram, classes_of
from sid_scale.networks.denoiser import Denoiser
from sid_scale.networks.edm.architecture import EDMArchitecture
from sid_scale.networks.folder import NetworkFolder, load_network, save_network
from tests.evaluate.detectors import FEATURES, write_inception
from tests.evaluate.evaluations import read, work
from tests.generators.tiny import PROVENANCE
from tests.ranks import run_ranks
from tests.tiny import write_data

pytestmark = pytest.mark.distributed

NUM = 40
SHAPE = (3, 8, 8)
SMALL = {
    "img_resolution": 8,
    "img_channels": 3,
    "model_channels": 8,
    "channel_mult": (1, 2),
    "num_blocks": 1,
    "attn_resolutions": (4,),
}
NETWORKS = {
    "ddpmpp": EDMArchitecture("SongUNet", label_dim=4, augment_dim=9, **SMALL),
    "ncsnpp": EDMArchitecture(
        "SongUNet",
        label_dim=0,
        embedding_type="fourier",
        encoder_type="residual",
        channel_mult_noise=2,
        resample_filter=(1, 3, 3, 1),
        **SMALL,
    ),
    "adm": EDMArchitecture("DhariwalUNet", label_dim=4, **SMALL),
}
CHURN = {"s_churn": 4.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003}
CHURN_WORDS = [f"--{name.replace('_', '-')}={value}" for name, value in CHURN.items()]


def write_network(folder: Path, architecture: EDMArchitecture, **provenance: object) -> None:
    """Weights none of which is zero, as after training."""
    torch.manual_seed(0)
    state = architecture.build().state_dict()
    for tensor in state.values():
        if not tensor.any():
            tensor.normal_(std=0.2)
    save_network(folder, NetworkFolder(architecture, state, provenance=provenance))


def write_edm_reference(path: Path) -> Path:
    """Statistics in the form of EDM's `fid-refs/*.npz`."""
    features = np.random.default_rng(0).normal(size=(200, FEATURES))
    np.savez(path, mu=features.mean(axis=0), sigma=np.cov(features, rowvar=False))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator and a teacher of each kind, measured on two ranks; one teacher also on one."""
    place = tmp_path_factory.mktemp("pixels")
    write_inception(place / "inception.pt")
    write_edm_reference(place / "edm.npz")
    for name, architecture in NETWORKS.items():
        write_network(place / name / "teacher", architecture)
        write_network(place / name / "generator", architecture, **PROVENANCE)
    run_ranks(2, _on_two_ranks, place)
    run_ranks(1, _two_blocks, place, "on_one_rank")
    return place


def measure(rank: int, place: Path, kind: str, network: Path, out: Path, *words: object) -> None:
    given = ["--generator" if kind == "run" else "--teacher", place / network, "--metrics", "fid"]
    given += ["--reference", place / "edm.npz", "--inception", place / "inception.pt"]
    given += ["--num", NUM, "--save-features", "--out", place / out, *words]
    work(rank, kind, [str(word) for word in given])


def _on_two_ranks(rank: int, place: Path) -> None:
    for name in NETWORKS:
        teacher = Path(name) / "teacher"
        measure(rank, place, "run", Path(name) / "generator", Path(name) / "one_step")
        measure(rank, place, "teacher", teacher, Path(name) / "heun", "--steps", 18)
        measure(rank, place, "teacher", teacher, Path(name) / "churn", "--steps", 6, *CHURN_WORDS)
    _two_blocks(rank, place, "on_two_ranks")


def _two_blocks(rank: int, place: Path, out: str) -> None:
    words = ["--steps", 3, *CHURN_WORDS, "--num", 300]
    measure(rank, place, "teacher", Path("adm/teacher"), Path(out), *words)


def one_step(network: Denoiser, seeds: range, condition: Tensor | None) -> Tensor:
    z = SeededNoise(seeds).normal(*SHAPE)
    return network(2.5 * z, torch.full((NUM,), 2.5), condition).denoised


def heun(network: Denoiser, seeds: range, condition: Tensor | None) -> Tensor:
    noise = SeededNoise(seeds).normal(*SHAPE)
    return heun_sample(denoiser(network, condition), noise, 18)


def churn(network: Denoiser, seeds: range, condition: Tensor | None) -> Tensor:
    noise = SeededNoise(seeds)
    settings = SamplerSettings(6, **CHURN)
    return edm_sample(denoiser(network, condition), lambda: noise.normal(*SHAPE), settings)


MADE: dict[str, Callable[[Denoiser, range, Tensor | None], Tensor]] = {
    "one_step": one_step,
    "heun": heun,
    "churn": churn,
}


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_measured_are_the_published_samplers_images(place: Path, name: str, made: str):
    folder = place / name / ("generator" if made == "one_step" else "teacher")
    seeds, network = range(NUM), load_network(folder).build()
    classes = torch.tensor(classes_of(seeds, class_histogram("uniform", 4)))
    condition = classes if NETWORKS[name].label_dim else None
    with torch.no_grad():
        x = MADE[made](network, seeds, condition).numpy()
    images = torch.from_numpy((x * 127.5 + 128).clip(0, 255).astype(np.uint8))
    features = torch.jit.load(place / "inception.pt")(images, return_features=True)
    saved = np.load(place / name / made / "features" / "fid.npy")
    np.testing.assert_allclose(saved, features.detach().numpy(), atol=1e-3)
    assert x.std() > 0.1


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("name", NETWORKS)
def test_fid_is_of_edms_reference(place: Path, name: str, made: str):
    reference = np.load(place / "edm.npz")
    features = np.load(place / name / made / "features" / "fid.npy").astype(np.float64)
    cov, sigma = np.cov(features, rowvar=False), reference["sigma"]
    shift = np.square(features.mean(axis=0) - reference["mu"]).sum()
    root = np.sqrt(linalg.eigvals(cov @ sigma).real.clip(0)).sum()
    expected = shift + np.trace(cov) + np.trace(sigma) - 2 * root
    assert read(place / name / made)["fid"] == pytest.approx(expected, rel=1e-5)


def test_the_sampler_is_said(place: Path):
    schedule = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
    deterministic = {"s_churn": 0.0, "s_min": 0.0, "s_max": None, "s_noise": 1.0}
    networks = {out: read(place / "adm" / out)["network"] for out in ("heun", "churn")}
    assert networks["heun"]["evaluations"] == 35
    assert networks["heun"]["sampler"] == {"steps": 18, **schedule, **deterministic}
    assert networks["churn"]["evaluations"] == 11
    assert networks["churn"]["sampler"] == {"steps": 6, **schedule, **CHURN}


def test_churn_is_the_same_on_any_number_of_ranks(place: Path):
    one, two = place / "on_one_rank", place / "on_two_ranks"
    assert min(read(two)["seconds_by_rank"]["sampling"]) > 0
    assert np.array_equal(*(np.load(out / "features" / "fid.npy") for out in (one, two)))
    assert read(one)["fid"] == read(two)["fid"]


def test_churn_is_the_same_at_any_batch_size(place: Path):
    from sid_scale.codecs import IdentityCodec
    from sid_scale.evaluate.samplers import TeacherSampler

    network = load_network(place / "ddpmpp" / "teacher").build()
    settings = SamplerSettings(6, **CHURN)
    device = torch.device("cpu")
    sampler = TeacherSampler(network, IdentityCodec(), settings, batch_size=4, device=device)
    seeds, classes = [7, 8, 9, 10], [3, 0, 1, 1]
    together = sampler.latents(classes, seeds)
    for number in range(4):
        alone = sampler.latents(classes[number : number + 1], seeds[number : number + 1])
        torch.testing.assert_close(alone[0], together[number], atol=1e-4, rtol=0)


# --- classes ------------------------------------------------------------------------------


def test_classes_are_drawn_as_often_as_in_shards_or_a_file(tmp_path: Path):
    write_data(tmp_path / "data", samples=39)  # of four classes 10, 10, 10, 9
    (tmp_path / "labels.txt").write_text("3 1 1\n1\n")
    assert class_histogram(str(tmp_path / "data"), 4) == [10, 10, 10, 9]
    assert class_histogram(str(tmp_path / "labels.txt"), 4) == [0, 3, 0, 1]
    assert class_histogram("uniform", 4) == [1, 1, 1, 1]
    assert class_histogram("uniform", 0) == []
    drawn = classes_of(range(20_000), [0, 3, 0, 1])
    assert np.bincount(drawn, minlength=4) / 20_000 == pytest.approx([0, 0.75, 0, 0.25], abs=0.01)
    assert drawn[500:510] == classes_of(range(500, 510), [0, 3, 0, 1])


def test_labels_decide_what_is_measured(place: Path, tmp_path: Path):
    (tmp_path / "labels.txt").write_text("2")
    run_ranks(1, _of_class_two, place, tmp_path)
    network, seeds = load_network(place / "adm" / "generator").build(), range(NUM)
    with torch.no_grad():
        x = one_step(network, seeds, torch.full((NUM,), 2))
    images = (x * 127.5 + 128).clip(0, 255).to(torch.uint8)
    features = torch.jit.load(place / "inception.pt")(images, return_features=True)
    saved = np.load(tmp_path / "out" / "features" / "fid.npy")
    np.testing.assert_allclose(saved, features.detach().numpy(), atol=1e-3)
    assert read(tmp_path / "out")["settings"]["labels"] == str(tmp_path / "labels.txt")
    assert read(place / "adm" / "one_step")["settings"]["labels"] == "uniform"
    assert read(place / "ncsnpp" / "one_step")["settings"]["labels"] is None


def _of_class_two(rank: int, place: Path, folder: Path) -> None:
    words = ["--labels", folder / "labels.txt"]
    measure(rank, place, "run", Path("adm/generator"), folder / "out", *words)
    from sid_scale.evaluate.blocks import BlockError

    with pytest.raises(BlockError, match=r"inputs\.labels .* there, .uniform. now"):
        measure(rank, place, "run", Path("adm/generator"), folder / "out")


# --- mistakes -----------------------------------------------------------------------------


def command(place: Path, *words: object) -> list[str]:
    given = ["evaluate", "teacher", "--teacher", place / "adm" / "teacher", "--num", NUM]
    given += ["--reference", place / "edm.npz", "--inception", place / "inception.pt"]
    return [str(word) for word in [*given, "--out", place / "none", *words]]


@pytest.mark.faults
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--s-min", "0.05"], "--s-min acts with --s-churn alone: give it, too"),
        (["--s-churn", "0", "--s-noise", "2"], "--s-noise acts with --s-churn alone"),
        (["--s-churn", "-1"], "the sampler: s_churn -1.0: a finite number, not below 0"),
        (["--s-churn", "nan"], "the sampler: s_churn nan: a finite number, not below 0"),
        (["--sigma-min", "90"], "the sampler: 0 < sigma_min < sigma_max is needed, not 90.0, 80.0"),
        (["--steps", "1"], "the sampler: steps 1: the sampler takes two or more"),
        (["--evaluations", "36"], "an odd number of evaluations"),
        (["--guidance", "2"], "--guide DIR and --guidance W (not 1) go together"),
    ],
)
def test_impossible_samplers_are_refused(
    place: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(command(place, *words)) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert message in told
    assert told.count("\n") == 1
    assert not (place / "none").exists()


@pytest.mark.faults
def test_impossible_labels_are_refused(place: Path, tmp_path: Path):
    write_data(tmp_path / "data")
    (tmp_path / "few.txt").write_text("0 4")
    (tmp_path / "none.txt").write_text("")
    (tmp_path / "folder").mkdir()
    ten = EDMArchitecture("DhariwalUNet", label_dim=10, **SMALL)
    write_network(tmp_path / "ten", ten, **PROVENANCE)
    run_ranks(1, _impossible_labels, place, tmp_path)


def _impossible_labels(rank: int, place: Path, folder: Path) -> None:
    def refused(message: str, labels: object, *words: object) -> None:
        words = ("--labels", labels, *words)
        with pytest.raises(LabelsError, match=message):
            measure(rank, place, "run", Path("adm/generator"), folder / "none", *words)
        assert not (folder / "none").exists()

    refused("labels: unifrom is neither uniform, shards nor a text file of classes", "unifrom")
    refused("folder is neither uniform, shards nor a text file", folder / "folder")
    refused("few.txt: entry 2, '4', is no class of 0..3", folder / "few.txt")
    refused("none.txt holds no class", folder / "none.txt")
    refused("data holds 4 classes, the network knows 10", folder / "data",
            "--generator", folder / "ten")  # fmt: skip


@pytest.mark.faults
def test_a_pixel_model_that_makes_no_numbers_has_no_figure(place: Path, tmp_path: Path):
    """uint8 knows no NaN: unnoticed, such images would look black."""
    run_ranks(1, _no_numbers, place, tmp_path)


def _no_numbers(rank: int, place: Path, folder: Path) -> None:
    from sid_scale.evaluate.features import MetricError

    broken = load_network(place / "adm" / "generator")
    broken.state["model.map_label.weight"][:, 1] = float("nan")  # of one class in four
    save_network(folder / "broken", broken)
    real = np.random.default_rng(0).normal(size=(9, FEATURES)).astype(np.float32)
    mu_sigma = dict(np.load(place / "edm.npz"))
    np.savez(folder / "r.npz", **{f"fid.{k}": v for k, v in mu_sigma.items()},
             **{"precision.features": real})  # fmt: skip
    for metric in ("fid", "is", "precision", "recall"):
        words = ["--metrics", metric, "--generator", folder / "broken"]
        words += ["--reference", folder / "r.npz"]
        with pytest.raises(MetricError, match=f"{metric}: what .* makes is not finite"):
            measure(rank, place, "run", Path("adm/generator"), folder / metric, *words)
