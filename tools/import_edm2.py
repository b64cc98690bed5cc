"""`python tools/import_edm2.py ...` is `sid-scale import ...`."""

import sys

from sid_scale.cli import main

if __name__ == "__main__":
    sys.exit(main(["import", *sys.argv[1:]]))
