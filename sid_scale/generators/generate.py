"""Images of every class with every seed, `classCCCC-seedSSSSSS.png`, on any number of ranks.

Interrupted and started again, only what is missing is made. The same seed gives the same
image beside any others; see `generator.py`.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from sid_scale.class_lists import MOST, ListError, parse_classes, parse_numbers, read_class_names
from sid_scale.codecs import fetch_once_a_node
from sid_scale.dtypes import torch_dtype
from sid_scale.errors import SidScaleError
from sid_scale.generators.generator import OneStepGenerator
from sid_scale.generators.image_folder import (
    Item,
    check_grid,
    claim_folder,
    every_class_with_every_seed,
    missing,
    recipe,
    write_grid,
    write_images,
    write_npz,
)
from sid_scale.hub.folders import fill_options, on_every_node
from sid_scale.networks.folder import read_description
from sid_scale.ranks import Ranks, joined_ranks


@dataclass(frozen=True)
class Plan:
    """What to make, of what, and where to put it."""

    generator: Path
    classes: list[int | None]  # [None] if the generator knows no classes
    seeds: list[int]
    out: Path
    steps: int | None
    dtype: torch.dtype
    vae: Path | None
    batch_size: int
    grid: bool
    npz: bool


def plan(options: argparse.Namespace) -> Plan:
    """The command line, understood.

    Raises:
        ListError: a list of classes or seeds cannot be.
        SidScaleError: the generator's folder cannot be used, or too much is asked for.
    """
    seeds = parse_numbers(options.seeds, "seeds")
    generator = Path(options.generator)
    known = read_description(generator).architecture.label_dim
    classes: list[int | None] = [None]
    if known and options.classes is None:
        raise ListError(f"--classes is missing: the generator knows {known} classes")
    if not known and options.classes is not None:
        raise ListError("--classes: the generator knows no classes; leave them out")
    if known:
        names = read_class_names(generator, known)
        classes = [*parse_classes(options.classes, names, known)]
    if len(classes) * len(seeds) > MOST:
        raise ListError(
            f"{len(classes)} classes x {len(seeds)} seeds are more than {MOST:,} images"
        )
    if options.grid:
        check_grid(classes, seeds)
    return Plan(
        generator,
        classes,
        seeds,
        options.out,
        options.steps,
        torch_dtype(options.dtype),
        options.vae,
        options.batch_size,
        options.grid,
        options.npz,
    )


def make_images(plan: Plan, ranks: Ranks) -> None:
    """Makes what is missing of a plan's images. Collective.

    Raises:
        SidScaleError: the generator or the folder cannot be used.
    """
    generator = OneStepGenerator.from_pretrained(
        plan.generator, vae=plan.vae, dtype=plan.dtype, batch_size=plan.batch_size
    ).to(ranks.device)
    fetch_once_a_node(generator.codec)
    generator.load_codec()  # if it is not there, nothing is begun
    items = every_class_with_every_seed(plan.classes, plan.seeds)
    wanted: list[list[Item]] = [[]]
    if ranks.is_first:
        claim_folder(plan.out, recipe(plan.generator, generator, plan.steps or generator.steps))
        wanted = [missing(plan.out, items)]
        print(f"{len(items)} images, {len(items) - len(wanted[0])} of them there already")
    dist.broadcast_object_list(wanted)
    _make_share(generator, wanted[0][ranks.rank :: ranks.world_size], plan, ranks)


def put_together(plan: Plan) -> None:
    """Writes grid and npz of a plan's images, if they are wanted. For one process.

    Raises:
        ImageFolderError: an image is missing or damaged, or the files cannot be written.
    """
    if plan.grid:
        print(write_grid(plan.out, plan.classes, plan.seeds))
    if plan.npz:
        print(write_npz(plan.out, every_class_with_every_seed(plan.classes, plan.seeds)))


def _make_share(generator: OneStepGenerator, share: list[Item], plan: Plan, ranks: Ranks) -> None:
    """Makes this rank's images; the bar shows the first rank's, and all have as many."""
    with tqdm(
        total=len(share),
        unit="img",
        desc="images" if ranks.world_size == 1 else f"images of 1 rank in {ranks.world_size}",
        disable=not ranks.is_first,
    ) as bar:
        for start in range(0, len(share), generator.at_once):
            part = share[start : start + generator.at_once]
            labels = [item.label for item in part if item.label is not None]
            images = generator.generate(labels or None, [item.seed for item in part], plan.steps)
            write_images(plan.out, part, images)
            bar.update(len(part))


def generate(options: argparse.Namespace) -> int:
    """Makes the images of a command line on the ranks that the launcher started; returns the exit
    status."""
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if alone:  # what cannot be is refused at once; several ranks fetch together, and so meet first
        fill_options(options)
        planned = plan(options)
    with joined_ranks() as ranks:
        if not alone:
            fill_options(options, on_every_node)
            planned = plan(options)
        try:
            make_images(planned, ranks)
        except KeyboardInterrupt as error:
            raise SidScaleError("interrupted; the same command makes what is missing") from error
    if ranks.is_first:  # an hour's work for large sets: the other ranks need not wait for it
        put_together(planned)
    return 0
