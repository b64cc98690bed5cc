"""Networks that guide a teacher: what they have to have in common with it."""

from pathlib import Path

from sid_scale.codecs import Codec, differing_key
from sid_scale.errors import SidScaleError
from sid_scale.networks import Architecture


class GuideError(SidScaleError):
    """A network that cannot guide a teacher; the message says which and why."""


def check_guide(
    teacher: Architecture, codec: Codec, guide: Architecture, guide_codec: Codec, folder: Path
) -> None:
    """Makes sure that a guide sees the images of its teacher, and its classes or none.

    Args:
        folder: of the guide.

    Raises:
        GuideError: says how they differ.
    """
    check_guide_architecture(teacher, guide, folder)
    ours, theirs = codec.describe(), guide_codec.describe()
    if key := differing_key(ours, theirs):
        raise GuideError(
            f"guide {folder} has codec {key} {theirs.get(key)}, the teacher {ours.get(key)}: "
            "a guide sees what its teacher sees"
        )


def check_guide_architecture(teacher: Architecture, guide: Architecture, folder: Path) -> None:
    """What `check_guide` makes sure of without the codecs, whose files may not be there yet."""
    if teacher.sample_shape != guide.sample_shape:
        raise GuideError(
            f"guide {folder} makes images {guide.sample_shape}, the teacher {teacher.sample_shape}"
        )
    if guide.label_dim not in (0, teacher.label_dim):
        raise GuideError(
            f"guide {folder} knows {guide.label_dim} classes, the teacher {teacher.label_dim}; "
            "a guide knows the same or none"
        )
