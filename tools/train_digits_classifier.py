"""Makes the demo's feature network again: `python tools/train_digits_classifier.py --out FOLDER`.

Deterministic for one machine and thread count.
"""

import argparse
import json
from pathlib import Path

import torch

from sid_scale.demo.train_classifier import ClassifierRecipe, make_classifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder that gets classifier/")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--iterations", type=int, default=ClassifierRecipe.iterations)
    parser.add_argument("--seed", type=int, default=ClassifierRecipe.seed)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    recipe = ClassifierRecipe(iterations=options.iterations, seed=options.seed)
    figures = make_classifier(options.out, recipe)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}, indent=2))


if __name__ == "__main__":
    main()
