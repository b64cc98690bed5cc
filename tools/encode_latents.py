"""`python tools/encode_latents.py ...` is `sid-scale encode ...`."""

import sys

from sid_scale.cli import main

if __name__ == "__main__":
    sys.exit(main(["encode", *sys.argv[1:]]))
