"""Files of latents to numbers."""

import io
import math

import numpy as np


def decode_latents(content: bytes) -> np.ndarray:
    """The numbers in a .npy, (2C, H, W), whose header is not believed before they are measured.

    Raises:
        ValueError: it is damaged, or holds something else than floating-point numbers.
    """
    npy = io.BytesIO(content)
    try:
        if np.lib.format.read_magic(npy) != (1, 0):
            raise ValueError("not version 1.0")
        shape, transposed, dtype = np.lib.format.read_array_header_1_0(npy)
    except Exception as error:  # whatever a hostile header provokes in Python's parser
        raise ValueError(f"no sound .npy: {error}") from error
    size = len(content) - npy.tell()
    if dtype.kind != "f" or dtype.itemsize * math.prod(shape) != size:
        raise ValueError(f"no sound .npy: {dtype} {shape} in {size} bytes")
    numbers = np.frombuffer(content, dtype, offset=npy.tell())
    return numbers.reshape(shape, order="F" if transposed else "C")
