"""`python tools/make_shards.py ...` is `sid-scale shards ...`."""

import sys

from sid_scale.cli import main

if __name__ == "__main__":
    sys.exit(main(["shards", *sys.argv[1:]]))
