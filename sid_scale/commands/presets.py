"""The runs that come as presets, with what is published of each: `sid-scale presets`."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sid_scale.presets import Preset

HEAD = ("preset", "data set", "parameters", "method", "batch", "images", "FID", "teacher")
NOTES = """
FID: one step, no guidance, as reported (arXiv 2404.04057, 2410.14919, github.com/mingyuanzhou/SiD;
of GDD github.com/Zyriix/GDD). The papers give one figure for SiDA and SiD2A and do not say which of
the two it is, and one for GDD and GDD-I, of GDD on AFHQv2 and of GDD-I on the others (*).
teacher: a network folder of this name, made with `sid-scale import` of NVIDIA's file of the same
name (.pkl), for EDM2 a posthoc reconstruction."""


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
        preset.data_set or "-",
        "-"
        if millions is None
        else f"{millions:,.0f} M"
        if millions >= 100
        else f"{millions:.2f} M",
        preset.method,
        str(preset.batch_size),
        f"{preset.total_images:,}",
        "-" if fid is None else f"{fid:.3f}" + ("" if preset.method == "sid" else "*"),
        preset.teacher,
    )
