"""Makes a network folder of a published network of EDM, EDM2, DDO, SiD, SiDA or SiD2A.

SOURCE.pkl is read without being run, and its publisher's code is not needed. OUT_DIR gets
model.safetensors, in the dtype of the source, and config.json; a run's `teacher` and
`generator_init` take it. It must not exist yet.

Examples: sid-scale import edm-cifar10-32x32-uncond-vp.pkl teachers/edm-cifar10-32x32-uncond-vp
    sid-scale import edm2-img512-xs-2147483-0.135.pkl \\
        teachers/edm2-img512-xs-2147483-0.135 --vae sd-vae-ft-mse
"""

import argparse
import math

from sid_scale.commands.arguments import location
from sid_scale.methods import METHODS

_GENERATOR = ("init_sigma", "steps", "method", "teacher")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=location, metavar="SOURCE.pkl", help="the published file")
    parser.add_argument("out", type=location, metavar="OUT_DIR", help="folder to make")
    parser.add_argument(
        "--kind",
        choices=("teacher", "generator"),
        help="what the network is; by default found out: a generator if of a class of SiD's "
        "own, of EDM2's without an uncertainty head, or alone in SOURCE (teachers' files hold "
        "more) unless that has a published teacher's name",
    )
    parser.add_argument(
        "--vae",
        type=location,
        metavar="FOLDER",
        help="the VAE of a network that sees latents, as a diffusers folder or a name on the hub; "
        "by default the name that SOURCE gives, for EDM2 stabilityai/sd-vae-ft-mse",
    )
    generator = parser.add_argument_group("generators, whose files do not say")
    generator.add_argument(
        "--init-sigma", type=_positive, help="noise level that it starts from (default 2.5)"
    )
    generator.add_argument(
        "--steps", type=int, choices=(1, 2, 4), help="NFE of an image (default 1)"
    )
    generator.add_argument("--method", choices=tuple(METHODS), help="what it was distilled with")
    generator.add_argument(
        "--teacher", metavar="NAME", help="what it was distilled from, for its model card"
    )


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


def run(options: argparse.Namespace) -> int:
    from sid_scale.codecs import absolute
    from sid_scale.networks.published import GeneratorSettings, import_published

    given = {name: getattr(options, name) for name in _GENERATOR}
    given = {name: value for name, value in given.items() if value is not None}
    network = import_published(
        options.source,
        options.out,
        kind=options.kind,
        generator=GeneratorSettings(**given) if given else None,
        vae=absolute(options.vae) if options.vae else None,
    )
    parameters = sum(tensor.numel() for tensor in network.state.values()) / 1e6
    print(f"{options.out}: {network.provenance['kind']} of {parameters:.1f} million parameters")
    return 0
