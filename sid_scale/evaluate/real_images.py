"""Real images, from shards or from a folder, as `reference` goes through them.

A source has parts, which ranks read in turn: of shards each is one, of a folder's images some
hundreds. Its images are numbered; of these every one is taken, or some that are spread evenly.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sid_scale.codecs import Codec
from sid_scale.data.shards import INDEX, decode, read_index, read_shard
from sid_scale.distill.noise import KeyedNoise
from sid_scale.errors import SidScaleError

BATCH = 256
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
PURPOSE = "reference"  # of the noise that samples the VAE's posterior

Taken = Callable[[int], bool]  # whether image number i is taken


class RealImageError(SidScaleError):
    """Real images that cannot be used; the message says which and why."""


class Batch(NamedTuple):
    """Some images: their numbers (N,), uint8 (N, 3, H, W), and what shards hold (N, 2C, h, w);
    a source has one of the two."""

    numbers: Tensor
    images: Tensor | None
    stored: Tensor | None


class Source(Protocol):
    """What every source offers."""

    @property
    def count(self) -> int:
        """How many images there are."""

    @property
    def parts(self) -> int:
        """How many parts they lie in."""

    def read(self, part: int, taken: Taken) -> Iterator[Batch]:
        """The images of a part that are taken."""


class ShardSource:
    """Latent shards."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.index = read_index(folder)
        self.count, self.parts = self.index.samples, len(self.index.shards)

    def read(self, part: int, taken: Taken) -> Iterator[Batch]:
        first = sum(shard.samples for shard in self.index.shards[:part])
        numbers: list[int] = []
        arrays: list[np.ndarray] = []
        for offset, record in enumerate(read_shard(self._folder, self.index.shards[part])):
            if taken(first + offset):
                numbers.append(first + offset)
                arrays.append(decode(record, self.index)[0])
            if len(numbers) == BATCH:
                yield self._batch(numbers, arrays)
                numbers, arrays = [], []
        if numbers:
            yield self._batch(numbers, arrays)

    def _batch(self, numbers: list[int], arrays: list[np.ndarray]) -> Batch:
        stored = torch.from_numpy(np.stack(arrays).astype(np.float32, copy=False))
        return Batch(torch.tensor(numbers), None, stored)


class FolderSource:
    """Images in a folder and in those below, in the order of their paths."""

    def __init__(self, folder: Path):
        self._paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS)
        if not self._paths:
            raise RealImageError(
                f"{folder}: neither shards ({INDEX}) nor images ({', '.join(ENDINGS)}) there"
            )
        self.count, self.parts = len(self._paths), -(-len(self._paths) // BATCH)
        self._size = self._open(self._paths[0]).shape

    def read(self, part: int, taken: Taken) -> Iterator[Batch]:
        every = range(part * BATCH, min((part + 1) * BATCH, self.count))
        numbers = [number for number in every if taken(number)]
        if numbers:
            images = torch.stack([self._image(self._paths[number]) for number in numbers])
            yield Batch(torch.tensor(numbers), images, None)

    def _image(self, path: Path) -> Tensor:
        image = self._open(path)
        if image.shape != self._size or image.shape[1] != image.shape[2]:
            height, width = image.shape[1:]
            raise RealImageError(
                f"{path}: {width}x{height} pixels; all images must be squares of one size, that of "
                f"the network's (the first has {self._size[2]}x{self._size[1]}). Crop and resize "
                "them first, as the training data were"
            )
        return image

    def _open(self, path: Path) -> Tensor:
        try:
            with Image.open(path) as image:
                return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise RealImageError(f"{path}: cannot be read: {error}") from error


def open_source(folder: Path) -> ShardSource | FolderSource:
    """What is in a folder.

    Raises:
        ShardError, RealImageError: neither shards nor images are there, or they are damaged.
    """
    if not folder.is_dir():
        raise RealImageError(f"{folder}: no folder; give one of shards or of images")
    return ShardSource(folder) if (folder / INDEX).is_file() else FolderSource(folder)


def sampled(codec: Codec, batch: Batch) -> Tensor:
    """Network latents (N, C, h, w) of what shards store, with noise that is the sample's own."""
    assert batch.stored is not None
    channels, height, width = batch.stored.shape[1:]
    noise = KeyedNoise(0, PURPOSE, batch.numbers).normal(channels // 2, height, width)
    return codec.sample(batch.stored, noise)


def spread(count: int, num: int) -> Taken:
    """Takes `num` of `count` images, evenly spread."""
    return lambda number: (number + 1) * num // count > number * num // count
