"""The demo's data: the digits through a codec into shards, as ImageNet's would be."""

from pathlib import Path

import torch

from sid_scale.codecs import Codec
from sid_scale.data.prepare.shard_writer import write_shards
from sid_scale.demo.digits import digit_images

ASSETS = Path(__file__).parent / "assets"
TEACHER = ASSETS / "teacher"
SHARD_SAMPLES = 450  # four shards


def write_digit_shards(folder: Path, codec: Codec) -> None:
    """Encodes all digits and writes them, in a seeded shuffle, as shards under `folder`."""
    images, labels = digit_images()
    stored = codec.encode(images).numpy()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
    write_shards(
        folder,
        ((f"digit{i:04d}", stored[i], int(labels[i])) for i in order),
        codec=codec.describe(),
        num_classes=10,
        dtype=codec.stored_dtypes[0],
        shard_samples=SHARD_SAMPLES,
    )
