"""Makes the demo's teachers again: `python tools/train_digits_teacher.py --out FOLDER`.

`--family edm2` (the default) is the latent one with its VAE, `--family edm` the one in pixels.
Deterministic for one machine and thread count.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import torch

from sid_scale.demo.train_teacher import (
    EDM2_TEACHER,
    EDM_TEACHER,
    VAERecipe,
    make_latent_teacher,
    make_pixel_teacher,
)

RECIPES = {"edm2": EDM2_TEACHER, "edm": EDM_TEACHER}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder that gets the networks")
    parser.add_argument("--family", choices=RECIPES, default="edm2", help="default edm2")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--vae-iterations", type=int, default=VAERecipe.iterations)
    parser.add_argument("--teacher-iterations", type=int, help="default: those of what is shipped")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    start = time.monotonic()

    def log(line: str) -> None:
        print(f"[{(time.monotonic() - start) / 60:5.1f} min] {line}", flush=True)

    recipe = RECIPES[options.family]
    if options.teacher_iterations is not None:
        recipe = dataclasses.replace(recipe, iterations=options.teacher_iterations)
    if options.family == "edm":
        figures = make_pixel_teacher(options.out, recipe, log)
    else:
        vae_recipe = VAERecipe(iterations=options.vae_iterations)
        figures = make_latent_teacher(options.out, vae_recipe, recipe, log)
    log(json.dumps({name: round(value, 4) for name, value in figures.items()}, indent=2))


if __name__ == "__main__":
    main()
