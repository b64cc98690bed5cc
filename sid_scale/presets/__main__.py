"""`python -m sid_scale.presets`: the presets, with what the papers report of them."""

import argparse
import sys
from collections.abc import Sequence

from sid_scale.presets import Preset, presets

HEAD = ("preset", "size", "parameters", "method", "batch", "images", "FID", "teacher")
NOTES = """
FID: ImageNet 512x512, one step, no guidance, as reported (arXiv 2410.14919). The paper's abstract
gives one figure a size for its adversarial methods and does not tell SiDA from SiD2A (*).
teacher: a network folder of this name, made with tools/import_edm2.py of NVIDIA's posthoc
reconstruction of the same name (.pkl)."""


def line(preset: Preset) -> tuple[str, ...]:
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the list; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sid_scale.presets", description=__doc__)
    parser.parse_args(arguments)
    lines = [HEAD, *(line(preset) for preset in presets())]
    widths = [max(len(cells[i]) for cells in lines) for i in range(len(HEAD))]
    for cells in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip())
    print(NOTES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
