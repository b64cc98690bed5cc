"""The evaluation itself: seeds -> latents -> images -> features on disk -> figures.

Blocks of seeds are dealt to the ranks, and what an image's features are does not depend on who
computes them. Each image is made once and shown to every detector. When all blocks are there, the
figures follow from the features alone (`from_features.py`).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from sid_scale.codecs import Codec
from sid_scale.devices import synchronize
from sid_scale.evaluate.blocks import Block, BlockStore
from sid_scale.evaluate.features import LATENTS, Extract, need_images
from sid_scale.evaluate.samplers import CPU_BATCH, Sampler, classes_of
from sid_scale.ranks import Ranks, on_first_rank
from sid_scale.thread_map import one_thread_each

T = TypeVar("T")
S = TypeVar("S")

STAGES = ("sampling", "decoding", "features", "waiting")
FEATURE_BATCH = 64  # images that a detector sees at once on a GPU
# Blocks of each rank between two meetings: ranks that drift farther apart would run into the
# process group's timeout (10 minutes with nccl) at the end.
MEETING = 8


@dataclass
class Stopwatch:
    """Seconds that this rank has spent, by stage."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts what happens inside for a stage."""
        began = time.perf_counter()
        yield
        synchronize(self.device)
        self.seconds[name] += time.perf_counter() - began


def make_blocks(
    sampler: Sampler,
    histogram: Sequence[int],
    extract: dict[str, Extract],
    blocks: Sequence[Block],
    store: BlockStore,
    ranks: Ranks,
    *,
    stopped: Callable[[], bool] = lambda: False,
    quiet: bool = False,
) -> Stopwatch | None:
    """Makes the features of `blocks` that are not on disk yet. Collective.

    Args:
        histogram: how often each class is drawn; empty without classes.
        extract: kind of features -> what makes them of images and latents.
        stopped: asked after each block; must say the same on all ranks.

    Returns:
        What this rank has spent its time on; None if it was stopped.

    Raises:
        SidScaleError: something cannot be made, or not be written.
    """
    watch = Stopwatch(ranks.device)
    missing = on_first_rank(lambda: store.missing(blocks, list(extract)))
    turns = -(-len(missing) // ranks.world_size)
    total = sum(block.num for block in missing)
    with tqdm(total=total, unit="img", disable=quiet or not ranks.is_first) as bar:
        for turn in range(turns):
            if stopped():
                return None
            row = missing[turn * ranks.world_size : (turn + 1) * ranks.world_size]
            mine = row[ranks.rank] if ranks.rank < len(row) else None
            if sampler.together:
                in_step = max(-(-block.num // sampler.batch) for block in row)
                block = mine or row[0]
                features = features_of_block(sampler, histogram, extract, block, watch, in_step)
            elif mine is not None:
                features = features_of_block(sampler, histogram, extract, mine, watch)
            if mine is not None:
                store.write(mine, features)
            if turn % MEETING == MEETING - 1:
                with watch.stage("waiting"):
                    dist.barrier()
            bar.update(sum(block.num for block in row))
    with watch.stage("waiting"):
        dist.barrier()
    return watch


def features_of_block(
    sampler: Sampler,
    histogram: Sequence[int],
    extract: dict[str, Extract],
    block: Block,
    watch: Stopwatch,
    in_step: int = 0,
) -> dict[str, np.ndarray]:
    """Features (n, D) of a block's samples by kind; NaN of those that are not finite.

    `in_step` batches are sampled at least, because other ranks sample as many at the same time;
    those that are too many are made in vain.
    """
    seeds = list(block.seeds)
    classes = classes_of(seeds, histogram)
    starts = range(0, len(seeds), sampler.batch)
    batches = [slice(start, start + sampler.batch) for start in starts]

    def sample(part: slice) -> Tensor:
        return sampler.latents(classes[part], seeds[part])

    with watch.stage("sampling"):
        if sampler.together:
            vain = [batches[-1]] * (in_step - len(batches))
            latents = torch.cat([sample(part) for part in [*batches, *vain]])[: len(seeds)]
        else:
            latents = torch.cat(_each(sample, batches, sampler.device))
    with watch.stage("decoding"):
        images = decode(sampler.codec, latents) if need_images(extract) else None
    with watch.stage("features"):
        features = extract_features(extract, images, latents)
    broken = ~latents.flatten(1).isfinite().all(dim=1).cpu().numpy()
    for values in features.values():
        values[broken] = np.nan  # uint8 images know no NaN: they would look like others
    return features


def decode(codec: Codec, latents: Tensor) -> Tensor:
    """uint8 images (N, 3, H, W) of latents."""
    at_once = CPU_BATCH if latents.device.type == "cpu" else len(latents)
    return torch.cat(_each(codec.decode, latents.split(at_once), latents.device))


def extract_features(
    extract: dict[str, Extract], images: Tensor | None, latents: Tensor | None
) -> dict[str, np.ndarray]:
    """Features (N, D) by kind, of images or latents; what no kind looks at may be None."""
    shown = {kind: latents if kind == LATENTS else images for kind in extract}
    return {kind: _look(extract[kind], seen) for kind, seen in shown.items() if seen is not None}


def _look(see: Extract, shown: Tensor) -> np.ndarray:
    at_once = CPU_BATCH if shown.device.type == "cpu" else FEATURE_BATCH

    @torch.no_grad()
    def look(part: Tensor) -> np.ndarray:
        return see(part).cpu().numpy()

    return np.concatenate(_each(look, shown.split(at_once), shown.device))


def _each(make: Callable[[S], T], parts: Sequence[S], device: torch.device) -> list[T]:
    """`make` of all parts: on a CPU several at once, each on one thread."""
    if device.type == "cpu":
        return one_thread_each(make, parts)
    return [make(part) for part in parts]
