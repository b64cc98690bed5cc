"""Writes a network folder's weights as their publisher names and shapes them.

    sid-scale export runs/demo/generator generator.safetensors

EDM's, EDM2's and SiD's networks then load them:
`net.load_state_dict(safetensors.torch.load_file(OUT))`. The weights go bit for bit, in the dtype
that they have. EDM2's own `Precond` always has an uncertainty head, which a generator has not:
`--logvar 128` adds one that says 0 everywhere.
"""

import argparse

from sid_scale.commands.arguments import check_least, network, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "generator",
        type=network,
        metavar="GENERATOR_DIR",
        help="a network folder, or its name on the hub",
    )
    parser.add_argument("out", type=path, metavar="OUT.safetensors", help="the file to write")
    parser.add_argument("--force", action="store_true", help="replace the file if it is there")
    parser.add_argument(
        "--logvar",
        type=int,
        default=0,
        metavar="CHANNELS",
        help="add an uncertainty head of so many channels to a network of EDM2's without one (128)",
    )


def run(options: argparse.Namespace) -> int:
    check_least(options, logvar=0)
    from sid_scale.hub import local_folder
    from sid_scale.networks.edm2.silent_logvar import with_silent_logvar
    from sid_scale.networks.export import export_network
    from sid_scale.networks.folder import load_network

    saved = load_network(local_folder(options.generator))
    if options.logvar:
        saved = with_silent_logvar(saved, options.logvar)
    export_network(saved, options.out, replace=options.force)
    print(f"{options.out}: {len(saved.state)} tensors")
    return 0
