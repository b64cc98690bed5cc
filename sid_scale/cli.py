"""`sid-scale COMMAND ...`: every entry point, and the manners that all share.

A command is a module with `add_arguments(parser)` and `run(options) -> int`. It is imported when
it is asked for, and imports torch and DeepSpeed in `run` alone: help and typos are answered at
once.
"""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from sid_scale.devices import set_allocator
from sid_scale.errors import SidScaleError, UsageError, print_once

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it

# Name -> (module, what it does), in the order of a run's life.
COMMANDS = {
    "presets": ("sid_scale.commands.presets", "list the runs that come as presets"),
    "import": ("sid_scale.commands.import_", "make a network folder of a published network"),
    "shards": ("sid_scale.commands.shards", "pack latents or images into shards"),
    "encode": ("sid_scale.commands.encode", "encode images with a VAE into shards of latents"),
    "check": ("sid_scale.commands.check", "check a data set"),
    "memory": ("sid_scale.commands.memory", "estimate a run's memory and GPU hours"),
    "launch": ("sid_scale.commands.launch", "start a run so that Ctrl-C leaves a checkpoint"),
    "train": ("sid_scale.commands.train", "distil a teacher (on ranks)"),
    "status": ("sid_scale.commands.status", "say how runs are"),
    "consolidate": ("sid_scale.commands.consolidate", "make network folders of a checkpoint"),
    "phema": ("sid_scale.commands.phema", "make a generator of another average's width"),
    "generate": ("sid_scale.commands.generate", "make images with a generator"),
    "grid": ("sid_scale.commands.grid", "make sheets of a generator's images"),
    "evaluate": ("sid_scale.commands.evaluate", "measure a generator or a teacher"),
    "report": ("sid_scale.commands.report", "write an HTML page of runs"),
    "card": ("sid_scale.commands.card", "complete a generator folder for publication"),
    "push": ("sid_scale.commands.push", "upload a generator folder to the hub"),
    "export": (
        "sid_scale.commands.export",
        "write weights under their publisher's names, or for diffusers",
    ),
}
RESUMABLE = ("shards", "encode", "generate", "evaluate")
DESCRIPTION = "Distils diffusion teachers into one-step generators, from one GPU to a cluster."
EPILOG = (
    "`sid-scale COMMAND --help` explains a command. On several devices: "
    "`deepspeed --module sid_scale COMMAND ...` or `torchrun --nproc_per_node N -m sid_scale "
    "COMMAND ...`."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 1 an error, 2 arguments at fault."""
    given = _without_local_rank(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="sid-scale", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"sid-scale {_version()}")
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    asked = next((word for word in given if not word.startswith("-")), None)
    for name, (module, does) in COMMANDS.items():
        command = parsers.add_parser(
            name, help=does, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name == asked:
            loaded = import_module(module)
            command.description = loaded.__doc__
            loaded.add_arguments(command)
    options = parser.parse_args(given)
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    """The command's exit status; errors that are the user's to mend become one line."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    warnings.filterwarnings("ignore", message=r"barrier\(\): using the device")  # that was set
    set_allocator()
    try:
        _check_accelerator()
        return int(import_module(COMMANDS[options.command][0]).run(options))
    except SidScaleError as error:
        print_once(error)
        return error.exit_status
    except OSError as error:
        print_once(error)
        return 1
    except KeyboardInterrupt:
        resumes = "; the same command goes on from here" if options.command in RESUMABLE else ""
        print(f"stopped{resumes}", file=sys.stderr)
        return INTERRUPTED


def _version() -> str:
    """The installed package's version, which pyproject.toml has."""
    try:
        return version("sid-scale")
    except PackageNotFoundError:
        return "of a source tree that is not installed"


def _check_accelerator() -> None:
    """Raises UsageError for what DeepSpeed would end with a traceback when it is imported."""
    given = os.environ.get("DS_ACCELERATOR", "cpu")
    if given not in ("cuda", "cpu"):
        raise UsageError(f"DS_ACCELERATOR: {given!r} is neither cuda nor cpu; remove it")


def _without_local_rank(given: Sequence[str]) -> list[str]:
    """The arguments without the one that DeepSpeed's launcher adds; LOCAL_RANK says the same."""
    return [word for word in given if not word.startswith(("--local_rank=", "--local-rank="))]


if __name__ == "__main__":
    sys.exit(main())
