"""What runs of `compare_methods.py` need: `compare_prepare.py WORK shards:latents
guide:latents ...` writes the shards of the digits, and a guide: the demo's teacher after a sixth of
its training.
"""

import dataclasses
import os
import sys
from pathlib import Path

from compare_job import guide_folder, shards_folder
from compare_rows import LATENTS, PIXELS

from sid_scale.codecs import open_codec
from sid_scale.demo.prepare import PIXEL_TEACHER, TEACHER, digits_for, write_digit_shards
from sid_scale.demo.train_teacher import EDM2_TEACHER, EDM_TEACHER, train_teacher
from sid_scale.networks.folder import read_description, save_network
from sid_scale.ranks import joined_ranks

TEACHERS = {LATENTS: TEACHER, PIXELS: PIXEL_TEACHER}
RECIPES = {LATENTS: EDM2_TEACHER, PIXELS: EDM_TEACHER}
GUIDE_ITERATIONS = 500


def main() -> int:
    """Writes what is asked for; returns the exit status."""
    work, *wanted = sys.argv[1:]
    with joined_ranks():
        for what, _, domain in (text.partition(":") for text in wanted):
            if what == "shards":
                write_digit_shards(shards_folder(Path(work), domain), TEACHERS[domain])
            else:
                write_guide(guide_folder(Path(work), domain), domain)
    return 0


def write_guide(folder: Path, domain: str) -> None:
    """A teacher of the same codec as the demo's, trained for less."""
    teacher = TEACHERS[domain]
    recipe = dataclasses.replace(RECIPES[domain], iterations=GUIDE_ITERATIONS)
    codec = open_codec(read_description(teacher).codec, beside=teacher)
    images, labels = digits_for(recipe.architecture, codec)
    network = train_teacher(codec, codec.encode(images), labels, recipe)
    described = codec.describe()
    if "vae" in described:
        described["vae"] = os.path.relpath(teacher.parent / "vae", folder)
    made = {"what": f"the demo's teacher after {recipe.iterations} iterations"}
    save_network(folder, dataclasses.replace(network, codec=described, provenance=made))


if __name__ == "__main__":
    sys.exit(main())
