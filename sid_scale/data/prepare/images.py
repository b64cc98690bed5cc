"""Image files to pixels, and the crop that ImageNet's results are reported on."""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError, features

# Read by content, not by name; PIL's other decoders are many, and some start other programs.
AVIF = features.check("avif")  # in Pillow's own wheels from 11.3 on
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", *(("AVIF",) if AVIF else ()))
SUFFIXES = (
    *(".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tiff", ".tif", ".gif"),
    *((".avif",) if AVIF else ()),
)
# The modes that `convert("RGB")` keeps the looks of; it would cut 16 bits off at white.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
NARROWEST = 100  # times as long as wide


def decode_image(content: bytes) -> np.ndarray:
    """An image file's pixels, uint8 (H, W, 3), of its first frame.

    Transparency is dropped, and a camera's note on which side is up is not looked at, as in the
    field's preprocessing.

    Raises:
        ValueError: it is damaged, cut short, or no image that is known here.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.mode not in MODES:
                raise ValueError(f"an image of mode {image.mode}; 8 bits a channel are wanted")
            if max(image.size) > NARROWEST * min(image.size):  # would be huge once resized
                raise ValueError(f"an image of {image.width}x{image.height} pixels, too narrow")
            return np.asarray(image.convert("RGB"))
    except ValueError:
        raise
    except UnidentifiedImageError as error:  # its own words name an object in memory
        raise ValueError(f"no sound image: none of {', '.join(FORMATS)}") from error
    except Exception as error:  # whatever a damaged file provokes in PIL's decoders
        raise ValueError(f"no sound image: {str(error) or type(error).__name__}") from error


def centre_crop(pixels: np.ndarray, resolution: int) -> np.ndarray:
    """The middle square of an image, at `resolution`: uint8 (H, W, 3) -> (R, R, 3).

    As in ADM (Dhariwal and Nichol, arXiv 2105.05233) and all that is compared with it: halved by
    averaging 2x2 pixels while the short side is at least twice too long, then bicubic to a short
    side of exactly R, then cut.
    """
    image = Image.fromarray(pixels)
    while min(image.size) >= 2 * resolution:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = resolution / min(image.size)
    size = round(image.width * scale), round(image.height * scale)
    array = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    top, left = (array.shape[0] - resolution) // 2, (array.shape[1] - resolution) // 2
    return array[top : top + resolution, left : left + resolution]
