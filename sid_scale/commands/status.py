"""How runs are: `sid-scale status RUN_DIR [RUN_DIR ...]`.

Exit status 0: every run is finished, running or waits to go on; 1: one has failed, was left, or
its folder holds no run.
"""

import argparse

from sid_scale.commands.arguments import path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=path, nargs="+")


def run(options: argparse.Namespace) -> int:
    from sid_scale.jobs.status import WELL, status_of

    found = [status_of(run_dir) for run_dir in options.run_dir]
    for status in found:
        print(status.page() if len(found) == 1 else status.line())
    return 0 if all(status.state in WELL for status in found) else 1
