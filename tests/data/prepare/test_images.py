"""Image files to pixels, and the crop of the field."""

import io

import numpy as np
import pytest
from PIL import Image

from sid_scale.data.prepare.images import FORMATS, centre_crop, decode_image
from tests.sources import png

RAMP = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def test_an_image_of_the_right_size_is_left_as_it_is() -> None:
    square = RAMP[:, :6]
    np.testing.assert_array_equal(centre_crop(square, 6), square)


def test_the_middle_is_taken() -> None:
    np.testing.assert_array_equal(centre_crop(RAMP, 6), RAMP[:, 1:7])  # of 3 to spare, 1 before
    np.testing.assert_array_equal(centre_crop(RAMP.swapaxes(0, 1), 6), RAMP.swapaxes(0, 1)[1:7])


def test_a_large_image_is_halved_by_averages_before_anything_else() -> None:
    # 8 x 8 to 2 x 2: two halvings leave nothing for the bicubic step, so these are plain means.
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8, 1).repeat(3, axis=2) * 4
    means = pixels.reshape(2, 4, 2, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(centre_crop(pixels, 2), means, atol=1)


def test_between_the_halvings_it_is_bicubic() -> None:
    # 20 x 30 to 8: halved once to 10 x 15, then resized to 8 x 12, then cut to 8 x 8.
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    halved = Image.fromarray(pixels).resize((15, 10), Image.Resampling.BOX)
    wanted = np.asarray(halved.resize((12, 8), Image.Resampling.BICUBIC))[:, 2:10]
    np.testing.assert_array_equal(centre_crop(pixels, 8), wanted)


def test_a_small_image_is_enlarged() -> None:
    assert centre_crop(RAMP, 24).shape == (24, 24, 3)


@pytest.mark.parametrize("kind", [*FORMATS])
def test_every_format_with_a_known_suffix_is_read(kind: str) -> None:
    pixels = decode_image(png(np.full((8, 8, 3), 204, np.uint8), kind))
    np.testing.assert_allclose(pixels, 204, atol=4)


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("white", "black")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(buffer.getvalue()).min() == 255


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "L"), ("PNG", "P"), ("JPEG", "CMYK")])
def test_whatever_the_mode_it_comes_out_as_rgb(kind: str, mode: str) -> None:
    grey = np.full((5, 7, 3), 204, np.uint8)  # a colour that P has
    pixels = decode_image(png(grey, kind, mode))
    assert (pixels.shape, pixels.dtype) == ((5, 7, 3), np.uint8)
    np.testing.assert_allclose(pixels, 204, atol=3)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "no sound image"),
        (b"no image", "no sound image"),
        (png(RAMP)[:-40], "no sound image"),
        (png(RAMP, "JPEG")[:-40], "truncated"),
        (png(RAMP, "PPM"), "no sound image"),
        (b"hello", "^no sound image: none of JPEG, PNG, WEBP, BMP, TIFF, GIF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no sound image"),
    ],
)
def test_a_damaged_or_unknown_image_is_refused(content: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        decode_image(content)


@pytest.mark.faults
def test_sixteen_bits_are_refused_rather_than_cut_off() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(buffer, "PNG")
    with pytest.raises(ValueError, match="mode I;16"):
        decode_image(buffer.getvalue())
