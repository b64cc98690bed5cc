"""The six published EDM2 sizes for ImageNet-512 latents (arXiv 2312.02696, Table 5)."""

from sid_scale.networks.edm2.architecture import EDM2Architecture

# Size -> (base channels, parameters in millions, dropout of the distillation runs).
SIZES = {
    "xs": (128, 125, 0.0),
    "s": (192, 280, 0.0),
    "m": (256, 498, 0.1),
    "l": (320, 777, 0.1),
    "xl": (384, 1119, 0.1),
    "xxl": (448, 1523, 0.1),
}


def imagenet512(size: str) -> EDM2Architecture:
    """Architecture of EDM2-`size` for 64x64x4 latents and 1000 classes.

    Raises:
        ValueError: `size` is none of xs, s, m, l, xl, xxl.
    """
    if size not in SIZES:
        raise ValueError(f"unknown EDM2 size {size!r}; the sizes are {', '.join(SIZES)}")
    return EDM2Architecture(
        img_resolution=64, img_channels=4, label_dim=1000, model_channels=SIZES[size][0]
    )
