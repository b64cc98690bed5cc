"""`python tools/check_shards.py ...` is `sid-scale check ...`."""

import sys

from sid_scale.cli import main

if __name__ == "__main__":
    sys.exit(main(["check", *sys.argv[1:]]))
