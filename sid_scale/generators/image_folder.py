"""A folder of generated images: a PNG for each class and seed, and what made them.

`generate.json` holds all that an image depends on besides class and seed: the weights' hash,
steps, dtype. A folder takes images of one recipe only, so those that are there need not be made
again. Files are written whole or not at all.
"""

import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sid_scale.atomic import atomic_write
from sid_scale.codecs import VAE_WEIGHTS, VAECodec
from sid_scale.errors import SidScaleError
from sid_scale.generators.generator import OneStepGenerator
from sid_scale.hashing import sha256_file
from sid_scale.image_grid import image_grid, read_png, write_png
from sid_scale.inputs_changed import changed_inputs
from sid_scale.networks import describe_architecture
from sid_scale.networks.folder import WEIGHTS

RECIPE = "generate.json"
GRID = "grid.png"
ARCHIVE = "images.npz"
FORMAT_VERSION = 1
MOST_IN_GRID = 400


class ImageFolderError(SidScaleError):
    """A folder that cannot take the images; the message says why and what to do."""


class Item(NamedTuple):
    """One image."""

    label: int | None  # None: the generator knows no classes
    seed: int

    @property
    def file_name(self) -> str:
        if self.label is None:
            return f"seed{self.seed:06d}.png"
        return f"class{self.label:04d}-seed{self.seed:06d}.png"


def every_class_with_every_seed(classes: Sequence[int | None], seeds: Sequence[int]) -> list[Item]:
    """The product, class by class; `classes` is [None] if there are none."""
    return [Item(label, seed) for label in classes for seed in seeds]


# --- what made the images -----------------------------------------------------------------


def recipe(folder: Path, generator: OneStepGenerator, steps: int) -> dict[str, Any]:
    """What an image depends on besides class and seed; `folder` is the generator's."""
    codec = generator.codec
    description = {k: v for k, v in codec.describe().items() if k != "vae"}  # a path
    if isinstance(codec, VAECodec):
        description["vae_sha256"] = sha256_file(codec.located() / VAE_WEIGHTS)
    inputs = {
        "format_version": FORMAT_VERSION,
        "weights_sha256": sha256_file(folder / WEIGHTS),
        "architecture": describe_architecture(generator.network.architecture),
        "codec": description,
        "init_sigma": generator.init_sigma,
        "steps": steps,
        "dtype": str(generator.network.compute_dtype).removeprefix("torch."),
    }
    return json.loads(json.dumps(inputs))  # as it reads back: lists for tuples


def claim_folder(folder: Path, inputs: dict[str, Any]) -> None:
    """Makes the folder ready for images of this recipe.

    Raises:
        ImageFolderError: it holds images of another recipe, or of none, or cannot be written.
    """
    path = folder / RECIPE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if message := changed_inputs(path, "images", inputs):
                raise ImageFolderError(message)
        elif any(folder.glob("*seed*.png")):
            raise ImageFolderError(
                f"{folder} holds images, but no {RECIPE} that says what made them: choose another "
                "folder"
            )
        else:
            with atomic_write(path) as partial:
                partial.write_text(json.dumps(inputs, indent=2) + "\n")
    except ValueError as error:
        raise ImageFolderError(f"{path}: damaged ({error}): choose another folder") from error
    except OSError as error:
        raise ImageFolderError(f"{folder} cannot be used: {error}") from error


# --- images -------------------------------------------------------------------------------


def missing(folder: Path, items: Sequence[Item]) -> list[Item]:
    """Those of `items` that are not there yet."""
    there = set(os.listdir(folder))
    return [item for item in items if item.file_name not in there]


def write_images(folder: Path, items: Sequence[Item], images: Tensor) -> None:
    """Writes uint8 images (N, 3, H, W).

    Raises:
        ImageFolderError: one cannot be written.
    """
    for item, image in zip(items, images.cpu(), strict=True):
        try:
            write_png(folder / item.file_name, image)
        except OSError as error:
            raise ImageFolderError(
                f"{folder / item.file_name} cannot be written: {error}. The same command goes on "
                "from here"
            ) from error


def read_image(folder: Path, item: Item) -> Tensor:
    """One image, uint8 (3, H, W).

    Raises:
        ImageFolderError: it is not there, or damaged.
    """
    try:
        return read_png(folder / item.file_name)
    except OSError as error:
        raise ImageFolderError(
            f"{folder / item.file_name} cannot be read: {error}. Delete it, and the same command "
            "makes it again"
        ) from error


def read_images(folder: Path, items: Sequence[Item]) -> Iterator[Tensor]:
    """Images, all of one size: uint8 (3, H, W) each.

    Raises:
        ImageFolderError: one is not there, damaged, or of another size than the first.
    """
    shape = None
    for item in items:
        image = read_image(folder, item)
        shape = shape or image.shape
        if image.shape != shape:
            raise ImageFolderError(
                f"{folder / item.file_name} is an image of {list(image.shape[1:])} pixels, the "
                f"others of {list(shape[1:])}. Delete it, and the same command makes it again"
            )
        yield image


def check_grid(classes: Sequence[int | None], seeds: Sequence[int]) -> None:
    """Raises ImageFolderError if the product is too much for one image."""
    if len(classes) * len(seeds) > MOST_IN_GRID:
        raise ImageFolderError(
            f"a grid of {len(classes)} classes x {len(seeds)} seeds is too large: "
            f"{MOST_IN_GRID} images at most; ask for fewer, or leave the grid out"
        )


def write_grid(folder: Path, classes: Sequence[int | None], seeds: Sequence[int]) -> Path:
    """Writes `grid.png`: a row for each class, a column for each seed; of one class or one seed
    near to a square.

    Raises:
        ImageFolderError: an image cannot be read, or the grid not written.
    """
    items = every_class_with_every_seed(classes, seeds)
    images = torch.stack(list(read_images(folder, items)))
    columns = len(seeds) if len(classes) > 1 and len(seeds) > 1 else None
    path = folder / GRID
    try:
        write_png(path, image_grid(images, columns))
    except OSError as error:
        raise ImageFolderError(f"{path} cannot be written: {error}") from error
    return path


def write_npz(folder: Path, items: Sequence[Item]) -> Path:
    """Writes `images.npz`: arr_0 (N, H, W, 3) uint8, the images; classes (N,) if there are any;
    seeds (N,), in this order.

    ADM's evaluator and its like look for images under the name that numpy gives by itself, arr_0.

    One image at a time is in memory: 50,000 of 512x512 are 39 GB.

    Raises:
        ImageFolderError: an image cannot be read, or the file not written.
    """
    path = folder / ARCHIVE
    try:
        with atomic_write(path) as partial:
            _write_npz(partial, folder, items)
    except OSError as error:
        raise ImageFolderError(f"{path} cannot be written: {error}") from error
    return path


def _write_npz(path: Path, folder: Path, items: Sequence[Item]) -> None:
    _, height, width = read_image(folder, items[0]).shape
    shape = (len(items), height, width, 3)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for image in read_images(folder, items):
                file.write(image.permute(1, 2, 0).numpy().tobytes())
        columns: dict[str, list[Any]] = {
            "classes": [i.label for i in items],
            "seeds": [i.seed for i in items],
        }
        for name, column in columns.items():
            if None not in column:  # there are no classes of a generator that knows none
                with archive.open(f"{name}.npy", "w") as file:
                    np.lib.format.write_array(file, np.array(column, np.int64))
