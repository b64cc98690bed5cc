"""Writes a network folder's weights as EDM2 and SiD name and shape them.

    python tools/export_edm2.py runs/demo/generator generator.safetensors

Their networks then load them: `net.load_state_dict(safetensors.torch.load_file(OUT))`. The weights
go bit for bit, in the dtype that they have. EDM2's own `Precond` always has an uncertainty head,
which a generator has not: `--logvar 128` adds one that says 0 everywhere, so that `load_state_dict`
is content.
"""

import argparse
import sys
from pathlib import Path

from sid_scale.errors import SidScaleError
from sid_scale.networks.edm2.export import export_network, with_silent_logvar
from sid_scale.networks.folder import load_stored_network


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("generator", type=Path, metavar="GENERATOR_DIR", help="a network folder")
    parser.add_argument("out", type=Path, metavar="OUT.safetensors", help="the file to write")
    parser.add_argument("--force", action="store_true", help="replace the file if it is there")
    parser.add_argument(
        "--logvar",
        type=int,
        default=0,
        metavar="CHANNELS",
        help="add an uncertainty head of so many channels to a network without one (EDM2's: 128)",
    )
    options = parser.parse_args()
    if options.logvar < 0:
        parser.error(f"--logvar {options.logvar} is below 0")
    try:
        network = load_stored_network(options.generator)
        if options.logvar:
            network = with_silent_logvar(network, options.logvar)
        export_network(network, options.out, replace=options.force)
    except SidScaleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {len(network.state)} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
