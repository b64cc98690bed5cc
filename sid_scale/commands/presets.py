"""The published runs that come as presets: `sid-scale presets`."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sid_scale.presets import Preset

HEAD = ("preset", "size", "parameters", "method", "batch", "images", "FID", "teacher")
NOTES = """
FID: ImageNet 512x512, one step, no guidance, as reported (arXiv 2410.14919). The paper's abstract
gives one figure a size for its adversarial methods and does not tell SiDA from SiD2A (*).
teacher: a network folder of this name, made with `sid-scale import` of NVIDIA's posthoc
reconstruction of the same name (.pkl)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None: the command lists all."""


def run(options: argparse.Namespace) -> int:
    from sid_scale.presets import presets

    lines = [HEAD, *(_cells(preset) for preset in presets())]
    widths = [max(len(cells[i]) for cells in lines) for i in range(len(HEAD))]
    for cells in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip())
    print(NOTES)
    return 0


def _cells(preset: "Preset") -> tuple[str, ...]:
    """A preset's cells; a dash is what is not known."""
    fid, millions = preset.reported_fid, preset.parameters
    return (
        preset.name,
        preset.size or "-",
        "-"
        if millions is None
        else f"{millions:,.0f} M"
        if millions >= 10
        else f"{millions:.2f} M",
        preset.method,
        str(preset.batch_size),
        f"{preset.total_images:,}",
        "-" if fid is None else f"{fid:.3f}*",
        preset.teacher,
    )
