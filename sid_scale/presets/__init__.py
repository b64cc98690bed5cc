"""Runs as YAML, by name: `--config edm2-img512-xl-sida`. `sid-scale presets` lists them.

`config/run.py` reads the files; here is what the papers say of the runs that they describe.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sid_scale.config.run import load_config, preset_names
from sid_scale.networks import parameter_count
from sid_scale.networks.folder import CheckpointError, read_description
from sid_scale.networks.teachers import published_architecture

METHODS = ("sid", "sida", "sid2a", "gdd", "gdd-i")  # in the order of the list


@dataclass(frozen=True)
class Published:
    """Runs on one data set: the preset's name without the method, and FIDs in one step, unguided.

    The abstract of arXiv 2410.14919 (v4) and the README of github.com/mingyuanzhou/SiD, branch
    sida, give one figure for "SiDA", which there stands for SiDA and SiD2A together; neither says
    which of the two it is. The README of github.com/Zyriix/GDD has one figure for GDD and GDD-I: of
    GDD on AFHQv2, of GDD-I on the others.
    """

    runs: str
    data_set: str
    sid: float | None  # README of the same repository, branch main; None: not told
    sida: float
    gdd: float | None = None


IMAGENET_512 = "ImageNet 512x512"
PUBLISHED = (
    Published("edm-cifar10-uncond", "CIFAR-10", 1.923, 1.499, 1.56),
    Published("edm-cifar10-cond", "CIFAR-10, classes", 1.710, 1.396),
    Published("edm-ffhq64", "FFHQ 64x64", 1.550, 1.040, 0.83),
    Published("edm-afhqv2", "AFHQv2 64x64", 1.628, 1.276, 1.24),
    Published("edm-imagenet64", "ImageNet 64x64", 1.524, 1.110, 1.13),
    Published("edm2-img512-xs", IMAGENET_512, None, 2.156),
    Published("edm2-img512-s", IMAGENET_512, None, 1.669),
    Published("edm2-img512-m", IMAGENET_512, None, 1.488),
    Published("edm2-img512-l", IMAGENET_512, None, 1.413),
    Published("edm2-img512-xl", IMAGENET_512, None, 1.379),
    Published("edm2-img512-xxl", IMAGENET_512, None, 1.366),
)
BY_RUNS = {published.runs: published for published in PUBLISHED}


@dataclass(frozen=True)
class Preset:
    """One preset as a line of the list; None is what is not known."""

    name: str
    data_set: str | None
    parameters: float | None  # millions
    method: str
    batch_size: int
    total_images: int
    reported_fid: float | None
    teacher: str


def presets() -> Iterator[Preset]:
    """All presets: the published runs by data set, size and method, then the others."""
    order = [f"{published.runs}-{method}" for published in PUBLISHED for method in METHODS]
    names = preset_names()
    yield from map(_preset, [name for name in order if name in names])
    yield from map(_preset, [name for name in names if name not in order])


def _preset(name: str) -> Preset:
    config = load_config(name)
    runs = name.removesuffix("-" + config.method.replace("_", "-"))
    published = BY_RUNS.get(runs)
    of_method = {"sid": "sid", "gdd": "gdd", "gdd_i": "gdd"}.get(config.method, "sida")
    fid = getattr(published, of_method) if published else None
    return Preset(
        name,
        published.data_set if published else None,
        _parameters(config.teacher),
        config.method,
        config.batch_size,
        config.total_images,
        fid,
        Path(config.teacher).name,
    )


def _parameters(teacher: str) -> float | None:
    """Millions of parameters of a published teacher, or of one that comes with the package."""
    architecture = published_architecture(Path(teacher).name)
    if architecture is None:
        try:
            architecture = read_description(teacher).architecture
        except CheckpointError:
            return None
    return parameter_count(architecture) / 1e6
