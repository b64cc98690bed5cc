"""The published teachers' architectures by name, for what is wanted before a file is there."""

from sid_scale.networks import Architecture
from sid_scale.networks.edm.sizes import TEACHERS
from sid_scale.networks.edm2.sizes import SIZES, imagenet512


def published_architecture(name: str) -> Architecture | None:
    """Of a file's name without `.pkl`, such as `edm-cifar10-32x32-cond-vp` or
    `edm2-img512-xs-2147483-0.135`; None: it names none that is known here."""
    family, _, rest = name.partition("-")
    if family == "edm":
        return TEACHERS.get(rest)
    if family == "edm2" and rest.startswith("img512-"):
        size = rest.split("-")[1]
        return imagenet512(size) if size in SIZES else None
    return None
