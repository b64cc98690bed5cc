"""`python tools/consolidate.py ...` is `sid-scale consolidate ...`."""

import sys

from sid_scale.cli import main

if __name__ == "__main__":
    sys.exit(main(["consolidate", *sys.argv[1:]]))
