"""Teachers that are known by the names of their published files: data, licence, papers,
architecture.

A name proves nothing of a file's contents. A model card says when it knows something from there.
"""

import re
from dataclasses import dataclass, replace

from sid_scale.networks import Architecture
from sid_scale.networks.edm.sizes import TEACHERS
from sid_scale.networks.edm2.sizes import SIZES, imagenet512

NON_COMMERCIAL = "cc-by-nc-sa-4.0"


@dataclass(frozen=True)
class DataSet:
    """What a teacher was trained on."""

    name: str  # for people
    id: str  # for machines
    is_on_hub: bool = True  # whether `id` is one of the Hugging Face hub


@dataclass(frozen=True)
class Publication:
    """A published teacher."""

    name: str  # of its file, without ".pkl"
    what: str  # in a few words
    data: DataSet
    project: str  # under whose name its publisher gave it away
    papers: tuple[str, ...]  # names, as `generators/card_facts.py` has them
    publisher: str = "NVIDIA"
    license: str = NON_COMMERCIAL
    base_model: str | None = None  # its repository on the hub


CIFAR10 = DataSet("CIFAR-10", "uoft-cs/cifar10")
FFHQ = DataSet("FFHQ 64x64", "ffhq-64x64", is_on_hub=False)
AFHQ = DataSet("AFHQv2 64x64", "afhqv2-64x64", is_on_hub=False)
IMAGENET = DataSet("ImageNet", "ILSVRC/imagenet-1k")

_EDM = {
    "edm-cifar10-32x32-uncond-vp": ("DDPM++ on CIFAR-10 without classes", CIFAR10),
    "edm-cifar10-32x32-uncond-ve": ("NCSN++ on CIFAR-10 without classes", CIFAR10),
    "edm-cifar10-32x32-cond-vp": ("DDPM++ on CIFAR-10 with classes", CIFAR10),
    "edm-cifar10-32x32-cond-ve": ("NCSN++ on CIFAR-10 with classes", CIFAR10),
    "edm-ffhq-64x64-uncond-vp": ("DDPM++ on FFHQ 64x64", FFHQ),
    "edm-ffhq-64x64-uncond-ve": ("NCSN++ on FFHQ 64x64", FFHQ),
    "edm-afhqv2-64x64-uncond-vp": ("DDPM++ on AFHQv2 64x64", AFHQ),
    "edm-afhqv2-64x64-uncond-ve": ("NCSN++ on AFHQv2 64x64", AFHQ),
    "edm-imagenet-64x64-cond-adm": ("ADM on ImageNet 64x64 with classes", IMAGENET),
}
_DDO = {
    "edm-cifar10-uncond-vp-ddo": ("EDM's DDPM++ on CIFAR-10 without classes", CIFAR10, "EDM"),
    "edm-cifar10-cond-vp-ddo": ("EDM's DDPM++ on CIFAR-10 with classes", CIFAR10, "EDM"),
    "edm2-img64-s-ddo": ("EDM2-S on ImageNet 64x64", IMAGENET, "EDM2"),
    "edm2-img512-l-ddo": ("EDM2-L on ImageNet 512x512", IMAGENET, "EDM2"),
}
_DDO_HUB = "nvidia/DirectDiscriminativeOptimization"
# Length of training in images / 1024 and relative width of the average end these names.
_EDM2 = re.compile(
    r"edm2-img(?:(512)-(xs|s|m|l|xl|xxl)(-uncond)?|(64)-(xs|s|m|l|xl))-\d{7}-\d\.\d{3}"
)


def publication(file_name: str) -> Publication | None:
    """The published teacher whose file, or folder made of it, has this name; None: none has."""
    name = file_name.removesuffix(".pkl")
    if name in _EDM:
        what, data = _EDM[name]
        return Publication(name, f"EDM's {what}", data, "EDM", ("EDM",))
    if name in _DDO:
        what, data, base = _DDO[name]
        what += ", fine-tuned by DDO"
        return Publication(name, what, data, "DDO", (base, "DDO"), base_model=_DDO_HUB)
    if match := _EDM2.fullmatch(name):
        resolution, size = match[1] or match[4], match[2] or match[5]
        classes = " without classes" if match[3] else ""
        what = f"EDM2-{size.upper()} on ImageNet {resolution}x{resolution}{classes}"
        return Publication(name, what, IMAGENET, "EDM2", ("EDM2",))
    return None


def published_architecture(name: str) -> Architecture | None:
    """Of a file's name without `.pkl`, such as `edm-cifar10-32x32-cond-vp` or
    `edm2-img512-xs-2147483-0.135`; None: it names none whose architecture is known here."""
    family, _, rest = name.partition("-")
    if family == "edm":
        return TEACHERS.get(rest)
    match = re.match(r"edm2-img512-([a-z]+)(-uncond)?", name)
    if match and match[1] in SIZES:
        architecture = imagenet512(match[1])
        return replace(architecture, label_dim=0) if match[2] else architecture
    return None
