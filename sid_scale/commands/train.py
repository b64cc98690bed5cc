"""Distils a teacher into a one-step generator, on the ranks that a launcher starts.

    sid-scale launch deepspeed --num_gpus 8 --module sid_scale train --config run.yaml

Settings may follow, as key=value. `--check` needs no launcher. Exit status: 0 finished, 75 asked to
stop (the same command goes on), 2 settings at fault.
"""

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from sid_scale.errors import UsageError

if TYPE_CHECKING:
    from sid_scale.config.run import RunConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--check",
        action="store_true",
        help="look at the settings alone, fetch networks that are on the hub, and start nothing",
    )
    parser.add_argument("--config", required=True, help="a YAML file, or the name of a preset")
    parser.add_argument(
        "--stop-file", type=Path, help="where `sid-scale launch` writes requests to stop"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace the file's"
    )


def run(options: argparse.Namespace) -> int:
    from sid_scale.config.run import load_config

    config = load_config(options.config, options.overrides)
    if "RANK" not in os.environ and not options.check:
        what = shlex.join(["--config", options.config, *options.overrides])
        raise UsageError(
            "training needs a launcher, which starts a rank for each device:\n"
            f"    sid-scale launch deepspeed --num_gpus 8 --module sid_scale train {what}\n"
            f"    sid-scale launch deepspeed --hostfile HOSTS --module sid_scale train {what}\n"
            f"    sbatch --nodes=N slurm/distill.sbatch {what.removeprefix('--config ')}"
        )
    # These import torch and DeepSpeed, which take their time: a typo should not.
    from sid_scale.train import train
    from sid_scale.zero.settings import settings_of

    settings_of(config, accumulation=1)  # before the ranks are joined
    if options.check:
        from sid_scale.distill.wandb_board import check_wandb

        check_wandb(config)
        _fetch(config)
        print(f"{options.config}: settings are sound, and so is deepspeed {config.deepspeed}")
        return 0
    return train(config, options.stop_file)


def _fetch(config: "RunConfig") -> None:
    """Fetches what a run names on the hub, so that it is there when the run begins.

    Raises:
        SidScaleError: it cannot be had.
    """
    from sid_scale.codecs import VAECodec, open_codec
    from sid_scale.config.networks import local_networks
    from sid_scale.hub.names import is_name
    from sid_scale.networks.folder import read_description

    teacher = Path(local_networks(config).teacher)
    if not (config.log.samples_every_images and teacher.is_dir()):
        return
    codec = open_codec(read_description(teacher).codec, beside=teacher)
    if isinstance(codec, VAECodec) and is_name(codec.folder):
        codec.check()
