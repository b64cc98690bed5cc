"""The teacher's table: the same noise as the generator's, guided or not, at any number of steps."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from sid_scale.diffusion.heun import SamplerSettings, denoiser, guided, heun_sample
from sid_scale.diffusion.noise import SeededNoise
from sid_scale.errors import UsageError
from sid_scale.evaluate.features import latent_features
from sid_scale.evaluate.samplers import classes_of
from sid_scale.generators.folder import GeneratorError
from sid_scale.networks.edm2.network import EDM2
from sid_scale.networks.folder import load_network, save_network
from sid_scale.networks.guides import GuideError
from tests.evaluate.evaluations import read, work
from tests.evaluate.test_training import write_real
from tests.generators.tiny import tiny_generator
from tests.hub_server import Hub, files_of, use_hub
from tests.ranks import run_ranks
from tests.tiny import ARCHITECTURE, tiny_folder, tiny_network, write_teacher

pytestmark = pytest.mark.distributed

NUM = 20
LABELS = ARCHITECTURE.label_dim


def write_unconditional(folder: Path) -> Path:
    save_network(folder, tiny_folder(3, dataclasses.replace(ARCHITECTURE, label_dim=0)))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of a teacher alone, guided by a lesser network, and by an unconditional one."""
    place = tmp_path_factory.mktemp("teacher")
    write_teacher(place / "teacher")
    write_teacher(place / "lesser", seed=1)
    write_unconditional(place / "unconditional")
    write_real(place / "real.npz", fd_latents=192)
    run_ranks(2, _tables, place)
    return place


def measure(rank: int, place: Path, out: str, *words: object) -> None:
    given = ["--teacher", place / "teacher", "--reference", place / "real.npz"]
    given += ["--metrics", "fd_latents", "--num", NUM, "--out", place / out, "--save-features"]
    work(rank, "teacher", [str(word) for word in [*given, *words]])


def _tables(rank: int, place: Path) -> None:
    measure(rank, place, "alone", "--evaluations", "5,7")
    measure(
        rank, place, "lesser_guide", "--steps", 3, "--guide", place / "lesser", "--guidance", 1.4
    )
    measure(rank, place, "free", "--steps", 3, "--guide", place / "unconditional", "--guidance", 2)


def _from_hub(rank: int, place: Path, address: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        use_hub(address, place / "cache", patch)
        names = ["--teacher", "user/teacher", "--guide", "user/lesser", "--guidance", 1.4]
        measure(rank, place, "from_hub", "--steps", 3, *names)


def test_teacher_and_guide_may_be_on_the_hub(place: Path, hub: Hub):
    for name in ("teacher", "lesser"):
        hub.model(f"user/{name}", files_of(place / name))
    run_ranks(2, _from_hub, place, hub.address)
    found, known = read(place / "from_hub"), read(place / "lesser_guide")
    assert found["fd_latents"] == known["fd_latents"]
    commits = {name: model.refs["main"] for name, model in hub.models.items()}
    assert found["network"]["path"] == f"user/teacher@{commits['user/teacher']}"
    assert found["network"]["guidance"]["guide"] == f"user/lesser@{commits['user/lesser']}"
    assert hub.fetched("model.safetensors") == 2


def expected(place: Path, steps: int, guide: str | None = None, weight: float = 1.0) -> np.ndarray:
    """Features of the samples, put together from the sampler's own pieces."""
    seeds = range(NUM)
    classes = torch.tensor(classes_of(seeds, [1] * LABELS))
    denoise = denoiser(load_network(place / "teacher").build(), classes)
    if guide is not None:
        network = load_network(place / guide).build()
        condition = classes if network.architecture.label_dim else None
        denoise = guided(denoise, denoiser(network, condition), weight)
    latents = heun_sample(denoise, SeededNoise(seeds).normal(3, 8, 8), steps)
    return latent_features(latents).numpy()


@pytest.mark.parametrize(
    ("out", "steps", "guide", "weight"),
    [
        ("alone/5", 3, None, 1.0),
        ("alone/7", 4, None, 1.0),
        ("lesser_guide", 3, "lesser", 1.4),
        ("free", 3, "unconditional", 2.0),
    ],
)
def test_samples_are_the_samplers_from_the_seeds_noise(
    place: Path, out: str, steps: int, guide: str | None, weight: float
):
    saved = np.load(place / out / "features" / "fd_latents.npy")
    np.testing.assert_allclose(saved, expected(place, steps, guide, weight), atol=1e-3)
    measured = read(place / out)
    assert measured["network"]["kind"] == "teacher"
    assert measured["network"]["evaluations"] == (2 * steps - 1) * (1 if guide is None else 2)
    if guide is not None:
        assert measured["network"]["guidance"]["weight"] == weight


def test_generator_and_teacher_start_from_the_same_noise(place: Path, tmp_path: Path):
    """At one step of sigma_max the generator computes what the sampler's first slope needs."""
    from sid_scale.evaluate.samplers import GeneratorSampler, TeacherSampler
    from sid_scale.generators.generator import OneStepGenerator

    seen: list[torch.Tensor] = []

    class Sees(EDM2):
        def forward(self, x, sigma, condition=None, **options):
            seen.append(x / sigma.reshape(-1, 1, 1, 1))
            return super().forward(x, sigma, condition, **options)

    network = tiny_network()
    network.__class__ = Sees
    generator = OneStepGenerator(network, codec=None, init_sigma=2.5)
    GeneratorSampler(generator).latents([1, 2], [7, 8])
    cpu = torch.device("cpu")
    teacher = TeacherSampler(network, None, SamplerSettings(3), batch_size=2, device=cpu)
    teacher.latents([1, 2], [7, 8])
    torch.testing.assert_close(seen[0], seen[1])


@pytest.mark.faults
def test_impossible_tables_are_refused(place: Path, tmp_path: Path):
    tiny_generator(tmp_path / "generator")
    small = dataclasses.replace(ARCHITECTURE, img_channels=4)
    save_network(tmp_path / "other", tiny_folder(architecture=small))
    latents = {"kind": "vae", "vae": "vae", "scale": [1.0] * 3, "bias": [0.0] * 3}
    save_network(tmp_path / "latent", dataclasses.replace(tiny_folder(), codec=latents))
    run_ranks(1, _impossible, place, tmp_path)


def _impossible(rank: int, place: Path, folder: Path) -> None:
    def refused(error: type[Exception], match: str, *words: object) -> None:
        with pytest.raises(error, match=match):
            measure(rank, place, "none", *words)

    refused(UsageError, "an odd number of evaluations", "--evaluations", 6)
    refused(UsageError, "takes two or more", "--steps", 1)
    refused(UsageError, "go together", "--guide", place / "lesser")
    refused(UsageError, "go together", "--guidance", 2)
    refused(GeneratorError, "holds a generator, not a teacher", "--teacher", folder / "generator")
    refused(GuideError, r"makes images \(4, 8, 8\), the teacher \(3, 8, 8\)",
            "--guide", folder / "other", "--guidance", 2)  # fmt: skip
    refused(GuideError, "latent has codec kind vae, the teacher identity",
            "--guide", folder / "latent", "--guidance", 2)  # fmt: skip
    assert not (place / "none").exists()
