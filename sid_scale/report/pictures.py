"""Images as data: URIs, no larger than a page needs them."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sid_scale.report.read import Grid, ReportError

WIDEST_GRID = 1024  # pixels; larger ones are made smaller, and JPEG
WIDEST_THUMBNAIL = 160
MOST_GRIDS = 6
QUALITY = 88


@dataclass(frozen=True)
class Picture:
    """An image for the page."""

    source: str  # data: URI
    width: int
    height: int
    reduced: bool  # whether it was larger


def chosen_grids(grids: tuple[Grid, ...], most: int = MOST_GRIDS) -> list[Grid]:
    """The first, the last, and as evenly as can be those between them."""
    last = len(grids) - 1
    if last < most:
        return list(grids)
    return [grids[round(i * last / (most - 1))] for i in range(most)]


def grid_picture(path: Path) -> Picture:
    """A grid of samples.

    Raises:
        ReportError: the file cannot be read, or is no image.
    """
    try:
        with Image.open(path) as opened:
            return _picture(opened.convert("RGB"), WIDEST_GRID)
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
        raise ReportError(f"{path}: cannot be read as an image: {error}") from error


def thumbnail(image: Tensor) -> Picture:
    """A small picture of a uint8 image (3, H, W)."""
    return _picture(Image.fromarray(image.permute(1, 2, 0).numpy()), WIDEST_THUMBNAIL)


def _picture(image: Image.Image, widest: int) -> Picture:
    reduced = image.width > widest
    if reduced:
        size = widest, max(1, round(image.height * widest / image.width))
        image = image.resize(size, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if reduced:
        image.save(file, "JPEG", quality=QUALITY)
    else:
        image.save(file, "PNG", optimize=True)
    kind = "jpeg" if reduced else "png"
    encoded = base64.b64encode(file.getvalue()).decode("ascii")
    return Picture(f"data:image/{kind};base64,{encoded}", image.width, image.height, reduced)
