"""Does a generator repeat its data? Its samples beside the real images that are nearest to them.

The shards are read as a stream, once, up to a limit. What is compared are latents (of a pixel
model: its pixels), averaged down to 8x8, so that nothing need be decoded to be looked at; of each
sample the few nearest are then decoded and put into the order of their pixels' distance. Some real
images go the same way, each without itself: their distance to their nearest neighbour is the
measure of 'near'.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from sid_scale.codecs import VAECodec
from sid_scale.data.shards import Record, ShardIndex, decode, read_index, read_shard
from sid_scale.errors import SidScaleError
from sid_scale.generators.folder import classes_in_turn
from sid_scale.generators.generator import OneStepGenerator

FEATURE_SIDE = 8  # latents are compared at 8x8
PIXEL_SIDE = 16  # pixels at 16x16
SHORTLIST = 6  # nearest by latents, of which the nearest by pixels are shown
NEIGHBOURS = 3
READ_AT_ONCE = 256
FEW_CLASSES = 20  # up to which classes are shown apart
SAMPLES_A_CLASS = 32


class NeighbourError(SidScaleError):
    """Generator and data cannot be compared; the message says why."""


@dataclass(frozen=True, eq=False)
class Neighbour:
    """A real image."""

    label: int
    distance: float  # root mean square over 16x16 averages, in grey levels of 0 to 255
    image: Tensor  # uint8 (3, H, W)


@dataclass(frozen=True, eq=False)
class GeneratedSample:
    """A generated image and the real ones that are nearest to it, the nearest first."""

    label: int
    seed: int
    image: Tensor  # uint8 (3, H, W)
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True, eq=False)
class Features:
    """Small latents of a set of images and their classes."""

    values: Tensor  # float32 (N, D)
    labels: Tensor  # int64 (N,)


@dataclass(frozen=True, eq=False)
class Findings:
    """What a search has found."""

    samples: tuple[GeneratedSample, ...]
    real_distance: float  # median, of some real images to the nearest other one
    real_compared: int  # how many that were
    searched: int
    total: int  # real images in the data set
    num_classes: int  # of the generator
    has_vae: bool  # whether images are decoded latents; else they are the pixels themselves
    generated: Features | None  # of few classes; what `class_lists.py` counts
    real: Features | None
    shortlist: int = SHORTLIST


def find_neighbours(
    generator: OneStepGenerator, data: str | Path, *, shown: int, limit: int
) -> Findings:
    """Samples from seeds 0, 1, ... with the classes in turn, and their nearest real images.

    Args:
        generator: on the device that is to make and decode images; the search is the CPU's.
        data: a folder of shards, the generator's kind of latents.
        shown: samples to look at.
        limit: real images to read at most; the first ones.

    Raises:
        SidScaleError: data, codec or VAE are missing or damaged, or do not fit the generator.
    """
    config = generator.network.architecture
    index = read_index(data)
    _check_fit(generator, index, str(data))
    generator.load_codec()
    few = 0 < config.label_dim <= FEW_CLASSES
    count = max(shown, SAMPLES_A_CLASS * config.label_dim if few else 0)
    given = classes_in_turn(shown, config.label_dim)
    if few:
        given = [i % config.label_dim for i in range(count)]
    latents = generator.sample_latents(given, range(count)).cpu()
    classes = given or [0] * count

    wanted = min(limit, index.samples)
    batches = real_latents(generator, data, index, wanted)
    first = next(batches)
    references = min(shown, len(first[0]))
    queries = torch.cat([latents[:shown], first[0][:references]])
    shortlist = Shortlist(queries, itself=[-1] * shown + list(range(references)))
    features: list[Tensor] = []
    labels: list[Tensor] = []
    searched = 0
    with tqdm(total=wanted, unit="img", desc="real images", leave=False, disable=None) as bar:
        for batch, batch_labels in chain([first], batches):
            small = small_latents(batch)
            shortlist.inspect(small, batch, batch_labels, searched)
            searched += len(batch)
            bar.update(len(batch))
            if few:
                features.append(small)
                labels.append(batch_labels)

    images = _decoded(generator, queries)
    found = [_by_pixels(generator, shortlist, q, images[q]) for q in range(len(queries))]
    nearest_of_real = [neighbours[0].distance for neighbours in found[shown:] if neighbours]
    return Findings(
        tuple(GeneratedSample(classes[q], q, images[q], found[q]) for q in range(shown)),
        float(np.median(nearest_of_real)) if nearest_of_real else float("nan"),
        len(nearest_of_real),
        searched,
        index.samples,
        config.label_dim,
        isinstance(generator.codec, VAECodec),
        Features(small_latents(latents), torch.tensor(classes)) if few else None,
        Features(torch.cat(features), torch.cat(labels)) if few else None,
    )


class Shortlist:
    """The nearest of all that has been looked at, for each of Q queries.

    Args:
        queries: latents (Q, C, h, w).
        itself: for each query its place among what will be looked at, or -1: nothing is its own
            neighbour.
    """

    def __init__(self, queries: Tensor, itself: list[int]):
        self._queries = small_latents(queries)
        self._itself = itself
        self.distances = queries.new_full((len(queries), 0), 0.0)  # (Q, k), rising
        self.latents = queries.new_zeros(len(queries), 0, *queries.shape[1:])
        self.labels = torch.zeros(len(queries), 0, dtype=torch.int64)

    def inspect(self, small: Tensor, latents: Tensor, labels: Tensor, first: int) -> None:
        """Images number `first` and on: features (B, D), latents (B, C, h, w), labels (B,)."""
        new = torch.cdist(self._queries, small)
        for query, place in enumerate(self._itself):
            if first <= place < first + len(small):
                new[query, place - first] = torch.inf
        held = self.distances.shape[1]
        merged = torch.cat([self.distances, new], dim=1)
        chosen = merged.argsort(dim=1, stable=True)[:, :SHORTLIST]
        self.distances = merged.gather(1, chosen)
        was_held = chosen < held
        old = chosen.clamp(max=max(held - 1, 0))
        added = (chosen - held).clamp(min=0)
        rows = torch.arange(len(chosen))[:, None]
        new_latents, new_labels = latents[added], labels[added]
        if held:
            mask = was_held[..., None, None, None]
            new_latents = torch.where(mask, self.latents[rows, old], new_latents)
            new_labels = torch.where(was_held, self.labels[rows, old], new_labels)
        self.latents, self.labels = new_latents, new_labels


def real_latents(
    generator: OneStepGenerator, data: str | Path, index: ShardIndex, limit: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The first `limit` real images as the network sees them: latents (B, C, h, w), those that
    the codec calls the likeliest, and labels (B,), all 0 for a generator without classes.

    Raises:
        ShardError: a shard is missing or damaged.
    """
    records = islice(_records(data, index), limit)
    while part := list(islice(records, READ_AT_ONCE)):
        decoded = [decode(record, index) for record in part]
        stored = torch.from_numpy(np.stack([array for array, _ in decoded]))
        labels = torch.tensor([label for _, label in decoded])
        if not generator.network.architecture.label_dim:
            labels = torch.zeros_like(labels)
        yield generator.codec.sample(stored, torch.zeros), labels  # the same for each: no noise


def small_latents(latents: Tensor) -> Tensor:
    """(N, C, h, w) -> float32 (N, D): averaged down to 8x8 if they are larger."""
    if latents.shape[-1] > FEATURE_SIDE:
        latents = F.adaptive_avg_pool2d(latents.float(), FEATURE_SIDE)
    return latents.float().flatten(1)


def pixel_distance(images: Tensor, others: Tensor) -> Tensor:
    """Root mean square difference of 16x16 averages, in grey levels: uint8 (N, 3, H, W) -> (N,)."""
    side = min(PIXEL_SIDE, images.shape[-1])
    a, b = (F.adaptive_avg_pool2d(x.float(), side) for x in (images, others))
    return (a - b).square().flatten(1).mean(dim=1).sqrt()


def _by_pixels(
    generator: OneStepGenerator, shortlist: Shortlist, query: int, image: Tensor
) -> tuple[Neighbour, ...]:
    there = shortlist.distances[query].isfinite()
    if not there.any():
        return ()
    images = _decoded(generator, shortlist.latents[query][there])
    labels = shortlist.labels[query][there].tolist()
    distances = pixel_distance(images, image.expand_as(images)).tolist()
    order = sorted(range(len(images)), key=lambda i: distances[i])[:NEIGHBOURS]
    return tuple(Neighbour(labels[i], distances[i], images[i]) for i in order)


def _decoded(generator: OneStepGenerator, latents: Tensor) -> Tensor:
    return generator.codec.decode(latents.to(generator.device)).cpu()


def _records(data: str | Path, index: ShardIndex) -> Iterator[Record]:
    for shard in index.shards:
        yield from read_shard(data, shard)


def _check_fit(generator: OneStepGenerator, index: ShardIndex, data: str) -> None:
    config = generator.network.architecture
    codec = generator.codec
    shape, kind = codec.stored_shape(config.sample_shape), codec.describe()["kind"]
    classes = config.label_dim or index.num_classes  # one without classes is at home in any data
    here = (index.sample_shape, index.num_classes, index.codec.get("kind"))
    if here != (shape, classes, kind) or index.dtype not in codec.stored_dtypes:
        raise NeighbourError(
            f"{data}: holds {index}; the generator wants {' or '.join(codec.stored_dtypes)} "
            f"{shape} of {config.label_dim} classes, codec {kind}"
        )
