"""Writes a network folder's weights as their publisher names and shapes them, or for diffusers.

    sid-scale export runs/demo/generator generator.safetensors
    sid-scale export --diffusers runs/demo/generator generator-diffusers

EDM's, EDM2's and SiD's networks load the file:
`net.load_state_dict(safetensors.torch.load_file(OUT))`. The weights go bit for bit, in the dtype
that they have. EDM2's own `Precond` always has an uncertainty head, which a generator has not:
`--logvar 128` adds one that says 0 everywhere.

With `--diffusers` OUT is a generator's folder that diffusers reads, too:
`DiffusionPipeline.from_pretrained(OUT, custom_pipeline="pipeline", trust_remote_code=True)`.
OUT may be GENERATOR_DIR itself, which is then completed.
"""

import argparse

from sid_scale.commands.arguments import check_least, network, path
from sid_scale.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "generator",
        type=network,
        metavar="GENERATOR_DIR",
        help="a network folder, or its name on the hub",
    )
    parser.add_argument("out", type=path, metavar="OUT", help="the file to write, or the folder")
    parser.add_argument("--force", action="store_true", help="replace OUT if it is there")
    parser.add_argument(
        "--logvar",
        type=int,
        default=0,
        metavar="CHANNELS",
        help="add an uncertainty head of so many channels to a network of EDM2's without one (128)",
    )
    parser.add_argument(
        "--diffusers", action="store_true", help="write a generator's folder that diffusers reads"
    )
    parser.add_argument(
        "--vae", type=network, metavar="DIR|NAME", help="its VAE, if config.json names another"
    )


def run(options: argparse.Namespace) -> int:
    check_least(options, logvar=0)
    if options.diffusers and options.logvar:
        raise UsageError("--logvar: diffusers has no use for it; leave it out")
    if options.vae and not options.diffusers:
        raise UsageError("--vae: weights alone need none; leave it out")
    return _export_for_diffusers(options) if options.diffusers else _export_weights(options)


def _export_weights(options: argparse.Namespace) -> int:
    from sid_scale.hub.folders import local_folder
    from sid_scale.networks.edm2.silent_logvar import with_silent_logvar
    from sid_scale.networks.export import export_network
    from sid_scale.networks.folder import load_network

    saved = load_network(local_folder(options.generator))
    if options.logvar:
        saved = with_silent_logvar(saved, options.logvar)
    export_network(saved, options.out, replace=options.force)
    print(f"{options.out}: {len(saved.state)} tensors")
    return 0


def _export_for_diffusers(options: argparse.Namespace) -> int:
    from sid_scale.generators.diffusers_folder import write_diffusers_folder
    from sid_scale.generators.folder import codec_of, trained_for
    from sid_scale.hub.folders import local_folder
    from sid_scale.networks.folder import load_network

    folder = local_folder(options.generator)
    vae = options.vae and local_folder(options.vae)
    saved = load_network(folder)
    trained_for(saved, folder)
    codec = codec_of(saved, folder, vae)
    print(write_diffusers_folder(folder, options.out, codec, replace=options.force))
    return 0
