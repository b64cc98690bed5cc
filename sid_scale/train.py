"""Entry point: `deepspeed --module sid_scale.train --config run.yaml [key=value ...]`."""

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence

from sid_scale.config import load_config, preset_names
from sid_scale.errors import SidScaleError
from sid_scale.ranks import joined_ranks, tell_once


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="deepspeed --module sid_scale.train",
        description="Distils an EDM2 teacher into a one-step generator.",
        epilog=f"Presets: {', '.join(preset_names())}.",
    )
    parser.add_argument("--config", required=True, help="a YAML file, or the name of a preset")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # from the launcher
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace the file's"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains; returns the exit status."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        config = load_config(options.config, options.overrides)
    except SidScaleError as error:
        tell_once(error)
        return 2
    # These import torch and DeepSpeed, which take their time: a typo should not.
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    from sid_scale.distill.loop import train
    from sid_scale.evaluate.training import open_evaluation

    with joined_ranks() as ranks:
        train(config, ranks, open_evaluation=open_evaluation)
    return 0


if __name__ == "__main__":
    sys.exit(main())
