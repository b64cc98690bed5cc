"""`python -m sid_scale.demo prepare|judge RUN_DIR`: what tools/demo.sh does around the training."""

import argparse
import json
import sys
from pathlib import Path

from sid_scale.codecs import open_codec
from sid_scale.demo.judge import judge_run
from sid_scale.demo.prepare import TEACHER, write_digit_shards
from sid_scale.networks.folder import load_network


def main() -> int:
    """Runs one of the two commands; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sid_scale.demo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="write the digits' shards")
    judge = commands.add_parser("judge", help="write summary.json, samples.png and curve.png")
    for command in (prepare, judge):
        command.add_argument("run_dir", type=Path)
    judge.add_argument("--began", type=float, required=True, help="when: seconds since 1970")
    options = parser.parse_args()

    if options.command == "prepare":
        codec = open_codec(load_network(TEACHER).codec, beside=TEACHER)
        write_digit_shards(options.run_dir / "shards", codec)
        return 0
    summary = judge_run(options.run_dir, TEACHER, options.began)
    print(json.dumps(summary, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
