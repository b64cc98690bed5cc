"""`python tools/export_edm2.py ...` is `sid-scale export ...`."""

import sys

from sid_scale.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
