"""The demo's data: the digits through a teacher's codec into shards, as ImageNet's would be."""

from pathlib import Path

import torch
from torch import Tensor

from sid_scale.codecs import Codec, open_codec
from sid_scale.data.prepare.shard_writer import write_shards
from sid_scale.demo.digits import NUM_CLASSES, digit_images
from sid_scale.networks import Architecture
from sid_scale.networks.folder import read_description

ASSETS = Path(__file__).parent / "assets"
TEACHER = ASSETS / "teacher"
PIXEL_TEACHER = ASSETS / "pixel_teacher"
CLASSIFIER = ASSETS / "classifier" / "model.safetensors"
SHARD_SAMPLES = 450  # four shards


def digits_for(architecture: Architecture, codec: Codec) -> tuple[Tensor, Tensor]:
    """Images and labels of the digits, at the resolution that a network and its codec make."""
    decoded = codec.decode(torch.zeros(1, *architecture.sample_shape))
    return digit_images(decoded.shape[-1])


def write_digit_shards(folder: Path, teacher: Path) -> None:
    """Encodes all digits for the network folder `teacher` and writes them, in a seeded shuffle, as
    shards under `folder`."""
    described = read_description(teacher)
    codec = open_codec(described.codec, beside=teacher)
    images, labels = digits_for(described.architecture, codec)
    stored = codec.encode(images).numpy()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
    write_shards(
        folder,
        ((f"digit{i:04d}", stored[i], int(labels[i])) for i in order),
        codec=codec.describe(),
        num_classes=NUM_CLASSES,
        dtype=codec.stored_dtypes[0],
        shard_samples=SHARD_SAMPLES,
    )
