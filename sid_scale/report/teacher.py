"""What a run's teacher is, in the words of whoever published it."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from sid_scale.errors import SidScaleError
from sid_scale.generators.card_facts import ROLES, on_one_line, teacher_facts
from sid_scale.hub.names import is_name, name_of
from sid_scale.networks.folder import read_description
from sid_scale.networks.teachers import publication


def teacher_title(config: Mapping[str, Any], generator: Path | None) -> str:
    """A run's teacher for people; empty if nothing says which it is.

    Args:
        config: the run's settings.
        generator: a generator folder of the run, which states what its teacher is.
    """
    given = str(config.get("teacher") or "")
    on_hub = name_of(given) or (given if is_name(given) else "")
    path = PurePosixPath(on_hub.partition("@")[0] or given)
    published = publication(path.name)
    if published:
        return f"{published.what} ({path.name})"
    if what := _stated(generator):
        return what
    whole = on_hub or path.name.lower() in ROLES
    return "/".join(path.parts[-2:]) if whole else path.name


def _stated(generator: Path | None) -> str:
    if generator is None:
        return ""
    try:
        facts = teacher_facts(read_description(generator).provenance)
    except (SidScaleError, OSError):
        return ""  # the look at the generator's samples says what is wrong
    return on_one_line(facts.get("what") or "")
