"""`python -m sid_scale.evaluate run|teacher|reference|report`: how good are the images?

    run         a generator's folder -> metrics.json
    teacher     the same table for a teacher with EDM's sampler, at any number of steps
    reference   statistics of real images, to compare with
    report      one HTML page of finished runs

Under `deepspeed --module sid_scale.evaluate run ...` or `torchrun -m` each rank does its share.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

# Name -> module with `add_arguments(parser)` and `main(options)`, and what it does. A module is
# imported when its command is given, and imports what takes its time in `main`.
COMMANDS = {
    "run": ("sid_scale.evaluate.run", "evaluate a generator"),
    "teacher": ("sid_scale.evaluate.teacher", "evaluate a teacher"),
    "reference": ("sid_scale.evaluate.reference", "compute statistics of real images"),
    "report": ("sid_scale.report.command", "write an HTML page of runs"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m sid_scale.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # from the launcher
    commands = parser.add_subparsers(dest="command", required=True)
    asked = next((word for word in given if not word.startswith("-")), None)
    for name, (module, does) in COMMANDS.items():
        command = commands.add_parser(name, help=does)
        if name == asked:
            import_module(module).add_arguments(command)
    options = parser.parse_args(given)
    return int(import_module(COMMANDS[options.command][0]).main(options))


if __name__ == "__main__":
    sys.exit(main())
