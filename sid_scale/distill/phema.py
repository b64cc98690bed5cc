"""From snapshots of a run's averages to an average of any other width: offline, tensor by tensor.

The weight profile of the wanted average is fitted by those of the stored ones (arXiv 2312.02696,
Sec. 3.2, Algorithm 3), and the stored weights are blended by the same coefficients. What is
blended are the weights as they are trained, and so is the result: rows that the forward pass
reads normalised are normalised there, as for every other network folder, and not here.

Needs no GPU and no ranks. One parameter of one stored average is in memory at a time, beside the
sum in float64.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from sid_scale.config.parse import read_yaml
from sid_scale.distill.start_weights import StartWeights, open_start
from sid_scale.errors import SidScaleError
from sid_scale.generators.card import CARD, write_card
from sid_scale.generators.folder import POST_HOC_EMA, adopt_class_names, adopt_vae, codec_of
from sid_scale.hub.folders import local_folder
from sid_scale.hub.names import is_name
from sid_scale.networks.folder import (
    describe,
    parse_description,
    read_description,
    stream_network,
)
from sid_scale.zero.power_ema import reconstruction, width_name
from sid_scale.zero.snapshots import BUFFERS_FILE, Snapshot, SnapshotError, read_snapshots

POOR = 0.1  # error of a fit from which it is no longer the width that was asked for


class PhemaError(SidScaleError):
    """An average that cannot be reconstructed; the message says why and what to do."""

    exit_status = 2


class Part(NamedTuple):
    """A stored average and its share in a blend."""

    snapshot: Snapshot
    relative_width: float
    coefficient: float


@dataclass(frozen=True)
class Blend:
    """How stored averages make another one."""

    relative_width: float
    images_seen: int  # the moment that it is of
    parts: tuple[Part, ...]
    error: float  # of its weight profile, see `Reconstruction`

    @property
    def summary(self) -> str:
        """The blend in a few words."""
        moments = len({part.snapshot.images_seen for part in self.parts})
        return (
            f"width {self.relative_width:g} at {self.images_seen:,} images, of {len(self.parts)} "
            f"averages in {moments} snapshot{'s' * (moments > 1)}, error of the fit "
            f"{self.error:.2g}"
        )

    @property
    def warning(self) -> str:
        """What to know of a blend that is far from what was asked for; else nothing."""
        if self.error < POOR:
            return ""
        return (
            f"the fit of width {self.relative_width:g} at {self.images_seen:,} images is poor "
            f"(error {self.error:.0%}): take a width nearer to the stored ones, or the moment of a "
            "snapshot; more snapshots make fits better"
        )

    def describe(self) -> dict[str, Any]:
        """What a generator's provenance says of it."""
        stored: dict[str, list[int]] = {}
        for part in self.parts:
            of_width = stored.setdefault(width_name(part.relative_width), [])
            of_width.append(part.snapshot.images_seen)
        return {
            "relative_width": self.relative_width,
            "fit_error": self.error,
            "snapshots": stored,  # moments, by the widths of the stored averages
        }


def check_new(out: Path) -> None:
    """Raises PhemaError if there is something where a generator is to be written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PhemaError(f"OUT {out} exists: name another folder, or remove it")


def open_snapshots(run: Path) -> list[Snapshot]:
    """The snapshots in a run folder, the oldest first; see `check_files` for their files.

    Raises:
        SnapshotError: there are none, a description is damaged, or they are of different networks.
    """
    snapshots = read_snapshots(run)
    last = snapshots[-1]
    for snapshot in snapshots:
        if differs := _difference(snapshot, last):
            raise SnapshotError(
                f"snapshots {snapshot.folder} and {last.folder} are of different networks "
                f"({differs}): remove those that are not of this run"
            )
    return snapshots


def check_files(snapshots: Sequence[Snapshot]) -> None:
    """Compares all files with their checksums: of large networks, minutes.

    Raises:
        SnapshotError: one is damaged.
    """
    for snapshot in snapshots:
        snapshot.check_files()


def _difference(a: Snapshot, b: Snapshot) -> str:
    """What of their networks is not the same; nothing if all is."""
    if a.network.get("architecture") != b.network.get("architecture"):
        return "architecture"
    of_a, of_b = (parse_description(s.network, f"snapshot {s.folder}")[2] for s in (a, b))
    for key in ("method", "teacher_sha256", "init_sigma", "steps"):
        if of_a.get(key) != of_b.get(key):
            return key
    # The folder that has the frozen weights may have moved between two attempts of the run.
    kept = [s.frozen and {**s.frozen, "start": None} for s in (a, b)]
    return "frozen weights" if kept[0] != kept[1] else ""


def plan_blend(
    snapshots: Sequence[Snapshot], relative_width: float, images_seen: int | None = None
) -> Blend:
    """The blend of all stored averages that fits another one best.

    Args:
        images_seen: the moment that it is of; None: that of the last snapshot.

    Raises:
        PhemaError: the width or the moment is out of range, or nothing near it can be made.
    """
    last = snapshots[-1].images_seen
    images_seen = last if images_seen is None else images_seen
    if not 0 < images_seen <= last:
        raise PhemaError(
            f"--images {images_seen}: the snapshots end at {last}, so the moment is one from 1 to "
            f"{last}"
        )
    stored = [(snapshot, width) for snapshot in snapshots for width in sorted(snapshot.averages)]
    if len(stored) == 1 and (images_seen, relative_width) != (last, stored[0][1]):
        raise PhemaError(
            f"{snapshots[0].folder} holds one average and is the only snapshot: another width "
            "takes two at least"
        )
    times = np.array([snapshot.images_seen for snapshot, _ in stored])
    try:
        fit = reconstruction(times, np.array([w for _, w in stored]), images_seen, relative_width)
    except ValueError as error:
        raise PhemaError(f"--width: {error}") from error
    if not fit.error < 1:
        raise PhemaError(
            f"no blend of the {len(stored)} stored averages comes near width {relative_width:g} at "
            f"{images_seen:,} images: take a width nearer to theirs, or the moment of a snapshot"
        )
    parts = [Part(*average, float(c)) for average, c in zip(stored, fit.coefficients, strict=True)]
    return Blend(relative_width, images_seen, tuple(parts), fit.error)


def reconstruct(blend: Blend, out: Path, starts: Sequence[Path] = ()) -> None:
    """Writes an average as the network folder `out`, over one that is there.

    Args:
        starts: folders that frozen weights may be in, beside the one that the snapshots name.

    Raises:
        SidScaleError: a snapshot is damaged, the folder that the generator started from is gone,
            or `out` cannot be written.
    """
    # What is told of the network is what the run said of it at that moment, or next after it.
    snapshots = [part.snapshot for part in blend.parts]
    told = next(s for s in snapshots if s.images_seen >= blend.images_seen)
    where = f"snapshot {told.folder}"
    architecture, codec, provenance = parse_description(told.network, where)
    provenance |= {"images_seen": blend.images_seen, POST_HOC_EMA: blend.describe()}
    with torch.device("meta"):
        network = architecture.build()
    shapes = {name: meta.shape for name, meta in network.state_dict().items()}
    file = told.folder / BUFFERS_FILE
    _check_tensors(file, {name: shapes[name] for name, _ in network.named_buffers()})
    start = open_start(told.frozen, starts, f"{where}: its generator")
    tensors = _Blended(blend, shapes, load_file(file), start)
    description = describe(architecture, codec, provenance)
    stream_network(out, description, tensors, dict.fromkeys(shapes, torch.float32))


class _Blended:
    """Full tensors by name, each blended when it is asked for."""

    def __init__(
        self,
        blend: Blend,
        shapes: Mapping[str, torch.Size],
        buffers: Mapping[str, Tensor],
        start: StartWeights | None,
    ):
        self._shapes, self._buffers, self._start = shapes, buffers, start
        self._frozen = frozenset() if start is None else frozenset(start.names)
        self._files = [
            (part.snapshot.folder / part.snapshot.averages[part.relative_width], part.coefficient)
            for part in blend.parts
        ]
        trained = {n: s for n, s in shapes.items() if n not in self._frozen and n not in buffers}
        for file, _ in self._files:
            _check_tensors(file, trained)

    def __call__(self, name: str) -> Tensor:
        if name in self._buffers:
            return self._buffers[name]
        shape = self._shapes[name]
        if self._start is not None and name in self._frozen:
            weight = torch.empty(shape.numel())
            self._start.fill(weight, name, 0)
            self._start.close()
            return weight.view(shape)
        total = torch.zeros(shape, dtype=torch.float64)
        for file, coefficient in self._files:
            # A file is unmapped after each parameter: pages of a map count as memory.
            with safe_open(file, framework="pt") as stored:
                total.add_(stored.get_tensor(name), alpha=coefficient)
        return total.float()


def _check_tensors(file: Path, expected: Mapping[str, torch.Size]) -> None:
    """Raises SnapshotError if a file holds other tensors than those of the architecture."""
    try:
        with safe_open(file, framework="pt") as stored:
            found = {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise SnapshotError(f"snapshot {file} is damaged ({error})") from error
    odd = sorted(n for n in found.keys() | expected.keys() if found.get(n) != _list(expected, n))
    if odd:
        raise SnapshotError(
            f"snapshot {file} holds other tensors than its architecture has: "
            f"{', '.join(odd[:4])}{' ...' if len(odd) > 4 else ''}"
        )


def _list(shapes: Mapping[str, torch.Size], name: str) -> list[int] | None:
    return list(shapes[name]) if name in shapes else None


def complete(folder: Path, run: Path) -> list[str]:
    """Adds what a run's own generators have beside the network: VAE, class names, model card.

    Returns:
        Messages about what could not be added.
    """
    messages = []
    additions: dict[str, Callable[[], object]] = {
        "VAE": lambda: adopt_vae(folder, codec_of(read_description(folder), folder)),
        "class names": lambda: adopt_class_names(folder, _teacher(run)),
        CARD: lambda: write_card(folder, run=run),
    }
    for what, add in additions.items():
        try:
            add()
        except (SidScaleError, OSError) as error:
            messages.append(f"{folder}: no {what} ({error}); `sid-scale card` completes it")
    return messages


def _teacher(run: Path) -> Path:
    teacher = str(read_yaml(run / "config.yaml").get("teacher"))
    return local_folder(teacher) if is_name(teacher) else Path(teacher)
