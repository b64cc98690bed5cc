"""Runs as YAML, by name: `--config edm2-img512-xl-sida`. `sid-scale presets` lists them.

`config/run.py` reads the files; here is what the papers say of the runs that they describe.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sid_scale.config.run import load_config, preset_names
from sid_scale.networks import parameter_count
from sid_scale.networks.edm2.sizes import SIZES
from sid_scale.networks.folder import CheckpointError, read_description

# FID on ImageNet 512x512 in one step and without guidance, by size of the teacher: abstract of
# arXiv 2410.14919 (v4), and the table in the README of github.com/mingyuanzhou/SiD, branch sida.
# Both give one figure a size for "SiDA", which there stands for SiDA and SiD2A together; neither
# says which of the two it is, nor what SiD alone reaches.
REPORTED_FID = {"xs": 2.156, "s": 1.669, "m": 1.488, "l": 1.413, "xl": 1.379, "xxl": 1.366}
PREFIX = "edm2-img512-"


@dataclass(frozen=True)
class Preset:
    """One preset as a line of the list; None is what is not known."""

    name: str
    size: str | None
    parameters: float | None  # millions
    method: str
    batch_size: int
    total_images: int
    reported_fid: float | None
    teacher: str


def presets() -> Iterator[Preset]:
    """All presets, by size and method."""
    sizes, methods = [*SIZES, None], ["sid", "sida", "sid2a"]
    rows = [_preset(name) for name in preset_names()]
    yield from sorted(rows, key=lambda row: (sizes.index(row.size), methods.index(row.method)))


def _preset(name: str) -> Preset:
    config = load_config(name)
    size = name.removeprefix(PREFIX).rpartition("-")[0] if name.startswith(PREFIX) else None
    return Preset(
        name,
        size,
        float(SIZES[size][1]) if size else _parameters(config.teacher),
        config.method,
        config.batch_size,
        config.total_images,
        REPORTED_FID[size] if size and config.method != "sid" else None,
        Path(config.teacher).name,
    )


def _parameters(teacher: str) -> float | None:
    """Millions of parameters of a teacher that comes with the package."""
    try:
        architecture = read_description(teacher).architecture
    except CheckpointError:
        return None
    return parameter_count(architecture) / 1e6
