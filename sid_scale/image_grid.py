"""Images as PNG files, alone or in a grid."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sid_scale.atomic import atomic_write


def image_grid(images: Tensor, columns: int | None = None) -> Tensor:
    """uint8 (N, 3, H, W) -> one image (3, rows * H, columns * W); black where N falls short.

    Without `columns` it is as near to a square as it gets.
    """
    count, channels, height, width = images.shape
    columns = columns or math.isqrt(count - 1) + 1
    rows = -(-count // columns)
    grid = images.new_zeros(rows * columns, channels, height, width)
    grid[:count] = images
    grid = grid.view(rows, columns, channels, height, width)
    return grid.permute(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)


def write_png(path: Path, image: Tensor) -> None:
    """Writes a uint8 image (3, H, W); who looks sees the whole file or none."""
    with atomic_write(path) as partial:
        Image.fromarray(image.cpu().permute(1, 2, 0).numpy()).save(partial, format="png")


def read_png(path: Path) -> Tensor:
    """What `write_png` wrote: uint8 (3, H, W).

    Raises:
        OSError: no such file, or no image.
    """
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
