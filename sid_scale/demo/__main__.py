"""`python -m sid_scale.demo prepare|judge RUN_DIR`: what tools/demo.sh does around the training."""

import argparse
import json
import sys
from pathlib import Path

from sid_scale.config.run import load_config
from sid_scale.demo.judge import judge_run
from sid_scale.demo.prepare import write_digit_shards


def main() -> int:
    """Runs one of the two commands; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sid_scale.demo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="write the digits' shards")
    judge = commands.add_parser("judge", help="write summary.json, samples.png and curve.png")
    for command in (prepare, judge):
        command.add_argument("run_dir", type=Path)
    prepare.add_argument("--preset", default="digits", help="whose teacher (default digits)")
    judge.add_argument("--began", type=float, required=True, help="when: seconds since 1970")
    options = parser.parse_args()

    if options.command == "prepare":
        teacher = Path(load_config(options.preset).teacher)
        write_digit_shards(options.run_dir / "shards", teacher)
        return 0
    summary = judge_run(options.run_dir, options.began)
    print(json.dumps(summary, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
