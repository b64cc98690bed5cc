"""What `compare_methods.py` needs beside runs: `compare_prepare.py WORK shards:latents ...`.

shards      of the digits
guide       a lesser teacher: the demo's after a fifteenth of its training
references  what the teacher's samples, and the other half of the real digits, measure
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

from compare_job import EVEN, NOISE_SEED, ODD, guide_folder, references_file, shards_folder
from compare_judge import figures, real_digits, teacher_images
from compare_rows import LATENTS, PIXELS

from sid_scale.atomic import atomic_write
from sid_scale.codecs import open_codec
from sid_scale.demo.prepare import PIXEL_TEACHER, TEACHER, digits_for, write_digit_shards
from sid_scale.demo.train_teacher import EDM2_TEACHER, EDM_TEACHER, train_teacher
from sid_scale.networks.folder import read_description, save_network
from sid_scale.ranks import Ranks, joined_ranks

TEACHERS = {LATENTS: TEACHER, PIXELS: PIXEL_TEACHER}
RECIPES = {LATENTS: EDM2_TEACHER, PIXELS: EDM_TEACHER}
GUIDE_ITERATIONS = 200
TEACHER_EVALUATIONS = (17, 35)


def main() -> int:
    """Writes what is asked for; returns the exit status."""
    work, *wanted = sys.argv[1:]
    with joined_ranks() as ranks:
        for what, _, domain in (text.partition(":") for text in wanted):
            if what == "shards":
                write_digit_shards(shards_folder(Path(work), domain), TEACHERS[domain])
            elif what == "guide":
                write_guide(guide_folder(Path(work), domain), domain)
            else:
                write_references(references_file(Path(work), domain), domain, ranks)
    return 0


def write_references(file: Path, domain: str, ranks: Ranks) -> None:
    """Judged as the runs that are reported are."""
    images, labels = real_digits(EVEN)
    found = {"real digits, other half": figures(images, labels, ODD, ranks)}
    labels = real_digits(ODD)[1]
    for evaluations in TEACHER_EVALUATIONS:
        images = teacher_images(TEACHERS[domain], evaluations, labels, NOISE_SEED)
        found[f"teacher, {evaluations} evaluations"] = figures(images, labels, ODD, ranks)
    file.parent.mkdir(exist_ok=True)
    with atomic_write(file) as partial:
        partial.write_text(json.dumps(found))


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
