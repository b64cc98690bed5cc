"""Features on disk, block of seeds by block of seeds.

    OUT/recipe.json                       what images and features were made of
    OUT/blocks/0000000256.pixels.npy      features (n, D) of the seeds from 256 on

A block is complete or not there, so an interrupted evaluation goes on with the blocks that are
missing, and memory holds a few of them, however many samples there are.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sid_scale.atomic import atomic_write
from sid_scale.errors import SidScaleError
from sid_scale.inputs_changed import changed_inputs

BLOCK = 256  # seeds
RECIPE = "recipe.json"


class BlockError(SidScaleError):
    """A folder that cannot take an evaluation; the message says why and what to do."""


class Block(NamedTuple):
    """Seeds `first` to `first + num - 1`."""

    first: int
    num: int

    @property
    def seeds(self) -> range:
        return range(self.first, self.first + self.num)


def blocks_of(first_seed: int, num: int, size: int = BLOCK) -> list[Block]:
    """`num` seeds from `first_seed` on, cut into blocks; the last may be shorter."""
    end = first_seed + num
    return [Block(first, min(size, end - first)) for first in range(first_seed, end, size)]


class BlockStore:
    """The blocks of one evaluation, in a folder that all ranks see."""

    def __init__(self, folder: Path):
        self.folder = folder / "blocks"
        self._recipe = folder / RECIPE

    def claim(self, recipe: dict[str, Any]) -> None:
        """Makes the folder ready for features of this recipe. For one rank to call.

        Raises:
            BlockError: it holds an evaluation of something else, or cannot be written.
        """
        recipe = json.loads(json.dumps(recipe))  # as it reads back: lists for tuples
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            if self._recipe.exists():
                if message := changed_inputs(self._recipe, "features", recipe):
                    raise BlockError(message)
                return
            with atomic_write(self._recipe) as partial:
                partial.write_text(json.dumps(recipe, indent=2) + "\n")
        except ValueError as error:
            if isinstance(error, SidScaleError):
                raise
            raise BlockError(f"{self._recipe}: damaged ({error}): choose another folder") from error
        except OSError as error:
            raise BlockError(f"{self.folder} cannot be used: {error}") from error

    def missing(self, blocks: Sequence[Block], kinds: Sequence[str]) -> list[Block]:
        """Those of `blocks` that lack some kind of features, or hold damaged ones."""
        return [b for b in blocks if not all(self._is_there(b, kind) for kind in kinds)]

    def write(self, block: Block, features: Mapping[str, np.ndarray]) -> None:
        """Writes features (n, D) by kind.

        Raises:
            BlockError: the disk is full, or the folder read-only.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for kind, values in features.items():
                with atomic_write(self._path(block, kind)) as partial, open(partial, "wb") as file:
                    np.save(file, values, allow_pickle=False)
        except OSError as error:
            raise BlockError(
                f"{self.folder} cannot be written to: {error}. Make room; the same command goes "
                "on from here"
            ) from error

    def read(self, block: Block, kind: str) -> np.ndarray:
        """Features (n, D) of a block.

        Raises:
            BlockError: they are missing or damaged.
        """
        path = self._path(block, kind)
        try:
            if not path.exists():
                os.listdir(self.folder)  # a network file system may remember that it was not there
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise BlockError(
                f"{path} cannot be read: {error}. Delete it, and the same command makes it again"
            ) from error
        if values.ndim != 2 or len(values) != block.num:
            raise BlockError(f"{path} holds {values.shape}, not {block.num} rows: delete it")
        return values

    def read_all(self, blocks: Sequence[Block], kind: str) -> Iterator[np.ndarray]:
        """Features of the blocks, one after the other."""
        return (self.read(block, kind) for block in blocks)

    def join(self, blocks: Sequence[Block], kind: str, path: Path) -> None:
        """Writes the features of all blocks as one array (N, D), never holding it whole.

        Raises:
            BlockError: a block is missing, or the disk is full.
        """
        first = self.read(blocks[0], kind)
        shape = (sum(block.num for block in blocks), first.shape[1])
        header = {
            "descr": np.lib.format.dtype_to_descr(first.dtype),
            "fortran_order": False,
            "shape": shape,
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as partial, open(partial, "wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for values in self.read_all(blocks, kind):
                    file.write(np.ascontiguousarray(values, first.dtype).tobytes())
        except OSError as error:
            raise BlockError(f"{path} cannot be written: {error}") from error

    def save_features(
        self, blocks: Sequence[Block], kinds: Mapping[str, str], folder: Path
    ) -> None:
        """Writes `folder`/features/METRIC.npy (N, D) for each metric; `kinds` says what it sees.

        Raises:
            BlockError: a block is missing, or the disk is full.
        """
        written: dict[str, Path] = {}
        for metric, kind in kinds.items():
            path = folder / "features" / f"{metric}.npy"
            if kind in written:
                link_or_copy(written[kind], path)
            else:
                self.join(blocks, kind, path)
            written.setdefault(kind, path)

    def remove(self) -> None:
        """Removes the features; the recipe stays."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove_whole(self) -> None:
        """Removes all, of an evaluation that is given up."""
        shutil.rmtree(self.folder.parent, ignore_errors=True)

    def _path(self, block: Block, kind: str) -> Path:
        return self.folder / f"{block.first:010d}.{kind}.npy"

    def _is_there(self, block: Block, kind: str) -> bool:
        try:
            values = np.load(self._path(block, kind), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return False
        return values.ndim == 2 and len(values) == block.num


def link_or_copy(source: Path, target: Path) -> None:
    """Gives a file a second name, or a copy where the file system knows no links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
