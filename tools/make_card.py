"""`python tools/make_card.py ...` is `sid-scale card ...`."""

import sys

from sid_scale.cli import main

if __name__ == "__main__":
    sys.exit(main(["card", *sys.argv[1:]]))
