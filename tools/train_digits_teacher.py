"""Makes the demo's assets again: `python tools/train_digits_teacher.py --out FOLDER`.

Deterministic for one machine and thread count.
"""

import argparse
import json
import time

import torch

from sid_scale.demo.train_teacher import TeacherRecipe, VAERecipe, make_assets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="folder that gets vae/ and teacher/")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--vae-iterations", type=int, default=VAERecipe.iterations)
    parser.add_argument("--teacher-iterations", type=int, default=TeacherRecipe.iterations)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    start = time.monotonic()

    def log(line: str) -> None:
        print(f"[{(time.monotonic() - start) / 60:5.1f} min] {line}", flush=True)

    figures = make_assets(
        options.out,
        VAERecipe(iterations=options.vae_iterations),
        TeacherRecipe(iterations=options.teacher_iterations),
        log,
    )
    log(json.dumps({name: round(value, 4) for name, value in figures.items()}, indent=2))


if __name__ == "__main__":
    main()
