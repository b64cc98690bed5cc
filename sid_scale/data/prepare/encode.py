"""Images to shards of what a codec makes of them - a VAE's latents, or the pixels themselves - over
any number of processes that share a folder.

The work is cut into shards, and the order of samples is that of the plan, so a shard's bytes do
not depend on who makes it: on a CPU each image is encoded alone, on one thread (thread_map.py says
why); on a GPU batches are cut within a shard, and only their size shows in the rounding.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sid_scale.codecs import VAE_WEIGHTS, Codec, VAECodec
from sid_scale.data.prepare.build import ShardBuild
from sid_scale.data.prepare.files import SourceError
from sid_scale.data.prepare.images import centre_crop
from sid_scale.data.prepare.keys import FLIPPED
from sid_scale.data.prepare.plan import Plan, describe_source, shard_count, shuffled
from sid_scale.data.prepare.raw_samples import Raw, Source
from sid_scale.data.prepare.refusals import Refusals
from sid_scale.data.prepare.shard_writer import Sample, SampleFormat
from sid_scale.dtypes import torch_dtype
from sid_scale.errors import SidScaleError
from sid_scale.hashing import sha256_file
from sid_scale.thread_map import one_thread_each


class EncodingError(SidScaleError):
    """Images that cannot be encoded so; the message says why and what to do."""


@dataclass(frozen=True)
class Encoding:
    """How images are encoded.

    Args:
        resolution: they are cropped to it.
        flip: each image is there a second time, mirrored.
        vae_dtype: what the VAE computes in.
        dtype: what is stored; None: the codec's usual one.
        batch_size: images that a GPU encodes at once.
        threads: that read, decode and crop image files.
    """

    resolution: int
    flip: bool
    vae_dtype: str
    dtype: str | None
    shard_bytes: int
    seed: int
    batch_size: int
    threads: int

    @property
    def copies(self) -> int:
        return 2 if self.flip else 1


class Encoder:
    """A codec at work on a device."""

    def __init__(self, codec: Codec, encoding: Encoding, device: torch.device):
        self.codec, self.device, self.batch_size = codec, device, encoding.batch_size
        self.vae_dtype = torch_dtype(encoding.vae_dtype)
        codec.load(device)

    def __call__(self, images: Tensor) -> np.ndarray:
        """uint8 (N, 3, H, W) -> what shards store, see `Codec.encode`.

        Raises:
            EncodingError: the device's memory does not hold them.
        """
        try:
            if self.device.type == "cpu":
                return torch.cat(one_thread_each(self._encode, images.split(1))).numpy()
            return self._encode(images.to(self.device, non_blocking=True)).cpu().numpy()
        except torch.OutOfMemoryError as error:
            raise EncodingError(
                f"{len(images)} images at once are more than the device's memory holds; give a "
                "smaller --batch-size. What is finished stays"
            ) from error

    def _encode(self, images: Tensor) -> Tensor:
        half = self.vae_dtype != torch.float32
        with torch.autocast(self.device.type, self.vae_dtype, enabled=half):
            return self.codec.encode(images, at_once=len(images))


def plan_encoding(source: Source, codec: Codec, encoding: Encoding, encoder: Encoder) -> Plan:
    """What encoding a source will make. A black image is encoded, for the stored shape.

    Raises:
        SourceError: the source holds no images.
        EncodingError: the VAE's latents do not have the channels that the codec describes, or
            nothing of this codec is stored in that dtype.
    """
    if source.kind != "images":
        raise SourceError("the source holds latents: `sid-scale shards` makes shards of them")
    size = encoding.resolution
    shape = encoder(torch.zeros(1, 3, size, size, dtype=torch.uint8)).shape[1:]
    dtype = encoding.dtype or codec.stored_dtypes[0]
    if dtype not in codec.stored_dtypes:
        raise EncodingError(
            f"--dtype {dtype}: codec {codec.describe()['kind']} stores "
            f"{' or '.join(codec.stored_dtypes)}; leave it out"
        )
    sample_format = SampleFormat(shape, dtype, source.num_classes)
    samples = encoding.copies * len(source)
    return Plan(
        source=describe_source(source),
        transform={
            "centre_crop": size,
            "flip": encoding.flip,
            **(_vae(codec, encoding, shape) if isinstance(codec, VAECodec) else {}),
        },
        seed=encoding.seed,
        samples=samples,
        shards=shard_count(samples, sample_format, encoding.shard_bytes),
        format=sample_format,
        codec=codec.describe(),
    )


def _vae(codec: VAECodec, encoding: Encoding, shape: tuple[int, ...]) -> dict[str, Any]:
    """What a plan says of a VAE that makes latents of this shape.

    Raises:
        EncodingError: it does not have the channels that the codec describes.
    """
    if 2 * len(codec.scale) != shape[0] or 2 * len(codec.bias) != shape[0]:
        raise EncodingError(
            f"{codec.folder} makes latents of {shape[0] // 2} channels, and the codec describes "
            f"{len(codec.scale)}; give --codec to describe this VAE's"
        )
    digest = sha256_file(codec.located() / VAE_WEIGHTS)
    return {"vae_dtype": encoding.vae_dtype, "vae_sha256": digest}


def encode(
    source: Source,
    making: ShardBuild,
    encoding: Encoding,
    encoder: Encoder,
    done: Callable[[int], object],
) -> None:
    """Makes this process's shards, and calls `done` with a number of samples now and then.

    Raises:
        ShardError: a shard cannot be written. What is refused is for `ShardBuild.check_refused`.
        EncodingError: the device's memory is too small.
    """
    order = shuffled(source, encoding.seed, encoding.copies)
    with ThreadPoolExecutor(encoding.threads) as pool:
        for number in making.mine:
            chosen = order[making.plan.positions(number)]
            work = _Shard(source, chosen, making.plan.format, encoding, encoder, pool, done)
            count = making.make(number, work.records)
            done(count - work.encoded)  # what was there already


class _ReadImage(NamedTuple):
    """An image to be encoded; `pixels` becomes uint8 (R, R, 3)."""

    raw: Raw
    flip: bool
    pixels: Future[np.ndarray]


@dataclass
class _Shard:
    """One shard's images; `chosen` are numbers of the source's, and beyond those, mirrored ones."""

    source: Source
    chosen: np.ndarray
    format: SampleFormat
    encoding: Encoding
    encoder: Encoder
    pool: ThreadPoolExecutor
    done: Callable[[int], object]
    encoded: int = 0

    def records(self, refusals: Refusals) -> Iterator[dict[str, Any]]:
        """What the shard holds, in order."""
        with self.source.part(self.chosen % len(self.source)).open() as raws:
            ready = _ahead(self._begun(raws), self.encoding.threads + 2 * self.encoding.batch_size)
            while read := list(islice(ready, self.encoding.batch_size)):
                cropped = [refusals.attempt(image.raw, image.pixels.result) for image in read]
                sound = [(i, p) for i, p in zip(read, cropped, strict=True) if p is not None]
                if sound and not refusals.stop:  # else only further refusals matter
                    yield from self._encode(sound, refusals)
                self.encoded += len(read)
                self.done(len(read))

    def _begun(self, raws: Iterable[Raw]) -> Iterator[_ReadImage]:
        for raw, flip in zip(raws, (self.chosen >= len(self.source)).tolist(), strict=True):
            pixels = self.pool.submit(_cropped, raw.load, flip, self.encoding.resolution)
            yield _ReadImage(raw, flip, pixels)

    def _encode(
        self, sound: list[tuple[_ReadImage, np.ndarray]], refusals: Refusals
    ) -> Iterator[dict[str, Any]]:
        images = torch.from_numpy(np.stack([pixels for _, pixels in sound])).permute(0, 3, 1, 2)
        for (image, _), stored in zip(sound, self.encoder(images), strict=True):
            raw = image.raw
            sample = Sample(raw.key + FLIPPED * image.flip, stored, raw.entry.label)
            record = refusals.attempt(raw, partial(self.format.record, sample))
            if record is not None and not refusals.stop:
                yield record


def _cropped(load: Callable[[], np.ndarray], flip: bool, resolution: int) -> np.ndarray:
    pixels = centre_crop(load(), resolution)
    return np.ascontiguousarray(pixels[:, ::-1]) if flip else pixels


def _ahead(images: Iterable[_ReadImage], most: int) -> Iterator[_ReadImage]:
    """The same, begun in good time: `most` of them are under way."""
    waiting: deque[_ReadImage] = deque()
    for image in images:
        waiting.append(image)
        if len(waiting) > most:
            yield waiting.popleft()
    yield from waiting
