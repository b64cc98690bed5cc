"""Real images, from shards, a folder or an archive, as `reference` goes through them.

A source has parts, which ranks read in turn: of shards each is one, of a folder's images some
hundreds. Its images are numbered; of these every one is taken, or some that are spread evenly.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from sid_scale.codecs import Codec
from sid_scale.data.prepare import sources
from sid_scale.data.prepare.images import centre_crop
from sid_scale.data.shards import INDEX, decode, read_index, read_shard
from sid_scale.diffusion.noise import SeededNoise, keyed_seeds
from sid_scale.errors import SidScaleError

BATCH = 256
PURPOSE = "reference"  # of the noise that samples the VAE's posterior

Taken = Callable[[int], bool]  # whether image number i is taken


class RealImageError(SidScaleError):
    """Real images that cannot be used; the message says which and why."""


class RealBatch(NamedTuple):
    """Some images: their numbers (N,), uint8 (N, 3, H, W), and what shards hold of them; a source
    has one of the two."""

    numbers: Tensor
    images: Tensor | None
    stored: Tensor | None


class RealImageSource(Protocol):
    """What every source offers."""

    @property
    def notes(self) -> Sequence[str]:
        """What the user should know of how it was read."""

    @property
    def count(self) -> int:
        """How many images there are."""

    @property
    def parts(self) -> int:
        """How many parts they are in."""

    def read(self, part: int, taken: Taken) -> Iterator[RealBatch]:
        """The images of a part that are taken."""


class ShardSource:
    """Shards, of latents or pixels."""

    notes: tuple[str, ...] = ()

    def __init__(self, folder: Path):
        self._folder = folder
        self.index = read_index(folder)
        self.count, self.parts = self.index.samples, len(self.index.shards)

    def read(self, part: int, taken: Taken) -> Iterator[RealBatch]:
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

    def _batch(self, numbers: list[int], arrays: list[np.ndarray]) -> RealBatch:
        return RealBatch(torch.tensor(numbers), None, torch.from_numpy(np.stack(arrays)))


class ImageSource:
    """Images in a folder or an archive, listed as `sid-scale shards` lists them: of splits the
    training images, and nothing that belongs to a file server.

    With a `resolution` the middle square of each, at that size (data/prepare/images.py);
    without, they must all be squares of one size.
    """

    def __init__(self, path: Path, resolution: int | None = None):
        self._source = sources.open_source(path, unlabelled=True)
        if self._source.kind != "images":
            raise RealImageError(f"{path} holds latents: make shards of them (`sid-scale shards`)")
        self.notes = self._source.notes
        self._resolution = resolution
        self.count = len(self._source)
        self.parts = -(-self.count // BATCH)
        [first] = self._read([0])
        self._shape = first[1].shape

    def read(self, part: int, taken: Taken) -> Iterator[RealBatch]:
        every = range(part * BATCH, min((part + 1) * BATCH, self.count))
        numbers = [number for number in every if taken(number)]
        if numbers:
            images = np.stack([self._checked(*image) for image in self._read(numbers)])
            yield RealBatch(
                torch.tensor(numbers), torch.from_numpy(images).permute(0, 3, 1, 2), None
            )

    def _checked(self, where: str, pixels: np.ndarray) -> np.ndarray:
        height, width, _ = pixels.shape
        if pixels.shape != self._shape or height != width:
            raise RealImageError(
                f"{where}: {width}x{height} pixels; all images must be squares of one size, that "
                f"of the network's (the first has {self._shape[1]}x{self._shape[0]}). --crop SIZE "
                "takes the middle of each"
            )
        return pixels

    def _read(self, numbers: list[int]) -> Iterator[tuple[str, np.ndarray]]:
        """Where each image is, and its pixels, uint8 (H, W, 3)."""
        with self._source.part(np.array(numbers)).open() as raws:
            for raw in raws:
                try:
                    pixels = raw.load()
                except SidScaleError as error:
                    raise RealImageError(f"{raw.where}: cannot be read: {error}") from error
                cropped = (
                    pixels if self._resolution is None else centre_crop(pixels, self._resolution)
                )
                yield raw.where, cropped


def open_source(path: Path, resolution: int | None = None) -> ShardSource | ImageSource:
    """What is in a folder or an archive; `resolution` is that of images, see `ImageSource`.

    Raises:
        SidScaleError: neither shards nor images are there, or they are damaged.
    """
    if not (path / INDEX).is_file():
        return ImageSource(path, resolution)
    if resolution is not None:
        raise RealImageError(f"{path} holds shards, whose images have their size: no --crop")
    return ShardSource(path)


def sampled(codec: Codec, batch: RealBatch) -> Tensor:
    """Network latents (N, C, h, w) of what shards store, with noise that is the sample's own."""
    assert batch.stored is not None
    noise = SeededNoise(keyed_seeds(0, PURPOSE, batch.numbers))
    return codec.sample(batch.stored, noise.normal)


def spread(count: int, num: int) -> Taken:
    """Takes `num` of `count` images, evenly spread."""
    return lambda number: (number + 1) * num // count > number * num // count
