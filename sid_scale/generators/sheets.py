"""Two sheets of a generator's images, to look at.

class-by-seed.png   a row for each class, a column for each seed
interpolation.png   from the first seed to the second, a row for each class; of a generator
                    that knows no classes, a row for each two neighbouring seeds
"""

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm import tqdm

from sid_scale.class_lists import ListError, parse_classes, parse_numbers, read_class_names
from sid_scale.devices import own_device
from sid_scale.dtypes import torch_dtype
from sid_scale.errors import SidScaleError
from sid_scale.generators.folder import classes_in_turn
from sid_scale.generators.generator import OneStepGenerator
from sid_scale.image_grid import write_png
from sid_scale.networks.folder import read_description

CLASS_BY_SEED, INTERPOLATION = "class-by-seed.png", "interpolation.png"
ROWS = 10  # classes, if none are named
MOST = 2_500  # images on a sheet
SMALLEST, LARGEST = 64, 256  # side of an image on a sheet, in pixels
GAP, MARGIN, TEXT = 2, 8, 14  # pixels
LONGEST = 24  # characters of a name
INK, PAPER = (32, 32, 32), (255, 255, 255)


class SheetError(SidScaleError):
    """A sheet that cannot be had; the message says why."""


class Row(NamedTuple):
    """What a row of a sheet is called, and of what it is."""

    name: str
    label: int | None  # the class; None if the generator knows none
    seeds: list[int]  # of its images, or of the two ends of a way


def make_sheets(options: argparse.Namespace) -> list[Path]:
    """Makes both sheets; returns their paths.

    Raises:
        SidScaleError: something given cannot be used.
    """
    rows, ways = plan_rows(options)
    generator = OneStepGenerator.from_pretrained(
        options.generator,
        vae=options.vae,
        dtype=torch_dtype(options.dtype),
        batch_size=options.batch_size,
    ).to(own_device())
    generator.load_codec()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SheetError(f"{options.out}: no folder for the sheets: {error}") from error

    def row(row: Row) -> Tensor:
        labels = None if row.label is None else [row.label] * len(row.seeds)
        return generator.generate(labels, row.seeds, options.steps)

    def way(row: Row) -> Tensor:
        first, last = row.seeds
        return generator.interpolate(row.label, (first, last), options.frames, options.steps)

    seeds = [f"seed {seed}" for seed in rows[0].seeds]
    parts = [f"{part:.2g}" for part in np.linspace(0, 1, options.frames)]
    if rows[0].label is not None:  # else each row has other ends, and says which
        parts[0], parts[-1] = seeds[:2]
    sheets = {CLASS_BY_SEED: (rows, row, seeds), INTERPOLATION: (ways, way, parts)}
    for file, (planned, make, columns) in sheets.items():
        images = [make(each).cpu() for each in tqdm(planned, unit="row", desc=file)]
        drawn = sheet(images, [each.name for each in planned], columns)
        try:
            write_png(options.out / file, drawn)
        except OSError as error:
            raise SheetError(f"{options.out / file} cannot be written: {error}") from error
    return [options.out / file for file in sheets]


def plan_rows(options: argparse.Namespace) -> tuple[list[Row], list[Row]]:
    """Rows of the two sheets.

    Raises:
        ListError: a list of classes or seeds cannot be.
        SidScaleError: the generator's folder cannot be used, or too much is asked for.
    """
    seeds = parse_numbers(options.seeds, "seeds")
    if len(seeds) < 2:
        raise ListError(f"seeds: {options.seeds} is one; a way goes from one to another")
    known = read_description(options.generator).architecture.label_dim
    if not known:
        if options.classes is not None:
            raise ListError("--classes: the generator knows no classes; leave them out")
        rows = [Row("", None, seeds)]
        ways = [Row(f"seed {a} to {b}", None, [a, b]) for a, b in pairwise(seeds)]
    else:
        names = read_class_names(options.generator, known)
        classes = classes_in_turn(min(ROWS, known), known)
        if options.classes is not None:
            classes = parse_classes(options.classes, names, known)
        assert classes is not None
        called = [_short(names[label]) if names else f"class {label}" for label in classes]
        rows = [Row(name, label, seeds) for name, label in zip(called, classes)]
        ways = [row._replace(seeds=seeds[:2]) for row in rows]
    for planned, columns in ((rows, len(seeds)), (ways, options.frames)):
        if len(planned) * columns > MOST:
            raise SheetError(
                f"{len(planned)} rows of {columns} images are too many for one sheet: {MOST:,} at "
                "most; name fewer --classes or --seeds, or ask for fewer --frames"
            )
    return rows, ways


def sheet(rows: Sequence[Tensor], names: Sequence[str], columns: Sequence[str]) -> Tensor:
    """Images with names: uint8 (3, height, width).

    Args:
        rows: uint8 (N, 3, H, W) each; small ones are enlarged, large ones made smaller.
        names: of the rows, on their left.
        columns: names of the N columns, above them.
    """
    side = max(rows[0].shape[-2:])
    shown = min(LARGEST, side * -(-SMALLEST // side))  # a whole multiple shows the pixels
    font = ImageFont.load_default(TEXT)
    left = MARGIN + (round(max(map(font.getlength, names))) + MARGIN if any(names) else 0)
    room = max(shown, round(max(map(font.getlength, columns))))
    cell = room + GAP
    top = TEXT + 2 * MARGIN
    size = (left + cell * len(columns) + MARGIN, top + (shown + GAP) * len(rows) + MARGIN)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, name in enumerate(columns):
        draw.text((left + cell * column + room / 2, top / 2), name, INK, font, anchor="mm")
    for number, (images, name) in enumerate(zip(rows, names, strict=True)):
        y = top + (shown + GAP) * number
        draw.text((MARGIN, y + shown / 2), name, INK, font, anchor="lm")
        for column, image in enumerate(images):
            x = left + cell * column + (room - shown) // 2
            canvas.paste(_resized(image, shown), (x, y))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1)


def _resized(image: Tensor, side: int) -> Image.Image:
    """A uint8 image (3, H, W) at another size."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    enlarges = side >= max(picture.size)
    method = Image.Resampling.NEAREST if enlarges else Image.Resampling.LANCZOS
    return picture.resize((side, side), method)


def _short(name: str) -> str:
    """A class's first name ("tench, Tinca tinca"), cut where it is too long for a sheet."""
    first = name.partition(",")[0].strip()
    return first if len(first) <= LONGEST else f"{first[: LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"
