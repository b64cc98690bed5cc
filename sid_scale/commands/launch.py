"""Starts a run by its launcher so that Ctrl-C leaves a checkpoint, however long an iteration takes.

    sid-scale launch deepspeed --num_gpus 8 --module sid_scale.train --config run.yaml
    sid-scale launch deepspeed --hostfile HOSTS --module sid_scale.train --config run.yaml

Without it DeepSpeed's launcher kills its ranks 30 seconds after Ctrl-C. Here that, SIGTERM, SIGUSR1
or a closed terminal ask the run to stop after its iteration, on all nodes; the same once more ends
it. Exit status: the launcher's, 75 if the run was asked to stop. The folder in which this is
started must be writable, and seen by all nodes.
"""

import argparse
import os

from sid_scale.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs=argparse.REMAINDER,
        metavar="LAUNCHER ...",
        help="the command that starts the run, in full",
    )


def run(options: argparse.Namespace) -> int:
    from sid_scale.jobs.launch import launch

    command = options.words
    if not any(word == "--config" or word.startswith("--config=") for word in command):
        raise UsageError(
            "launch starts runs, by a launcher's command with the run's --config:\n"
            "    sid-scale launch deepspeed --num_gpus 8 --module sid_scale.train --config run.yaml"
        )
    refuse_ignored_devices(command, os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    return launch(command)


def refuse_ignored_devices(command: list[str], visible: str) -> None:
    """Refuses a command with which `deepspeed` takes other GPUs than CUDA_VISIBLE_DEVICES says.

    Raises:
        UsageError: `--num_gpus` counts from GPU 0, whatever is visible.
    """
    deepspeed = argparse.ArgumentParser(add_help=False)
    deepspeed.add_argument("--num_gpus", "--num_accelerators", default="")
    deepspeed.add_argument("-H", "--hostfile")
    given = deepspeed.parse_known_args(command)[0]
    if given.hostfile or not given.num_gpus.isdecimal():  # DeepSpeed refuses the others
        return
    taken = list(map(str, range(int(given.num_gpus))))
    shown = [device.strip() for device in visible.split(",") if device.strip()][: len(taken)]
    if taken and shown and shown != taken[: len(shown)]:
        numbered = all(device.isdecimal() for device in shown)
        wanted = ",".join(shown) if numbered else "NUMBER,NUMBER (nvidia-smi -L lists them)"
        raise UsageError(
            f"CUDA_VISIBLE_DEVICES={visible}: deepspeed ignores it beside --num_gpus, and takes "
            f"GPUs {','.join(taken)}; in place of --num_gpus give --include localhost:{wanted}"
        )
