"""Arguments that objects of EDM's and EDM2's persistent classes were made with."""

from typing import Any

from sid_scale.pickles.reader import PickledObject, PickleError
from sid_scale.pickles.values import mapping


def arguments(made: PickledObject, names: tuple[str, ...], where: str) -> dict[str, Any]:
    """The arguments that an object was made with, by name.

    Args:
        made: the object.
        names: of the arguments that may be positional, in their order.
        where: for errors.

    Raises:
        PickleError: it holds no arguments, or more than there are names.
    """
    positional = made.state.get("_init_args", [])
    if not isinstance(positional, list) or len(positional) > len(names):
        raise PickleError(f"{where}: _init_args should be at most {len(names)} values")
    by_name = mapping(made.state.get("_init_kwargs"), f"{where}: _init_kwargs")
    return {**dict(zip(names, positional)), **by_name}


def setting(name: str, where: str) -> str:
    """The name of a setting of a file, for errors."""
    return f"{where}: {name[:64]}" if name.isidentifier() else f"{where}: {name[:64]!a}"


def refuse_unknown(name: str, value: Any, where: str) -> None:
    """Lets a setting that networks here do not have pass if it is switched off (0 or None).

    Raises:
        PickleError: it is not.
    """
    if value is not None and not (isinstance(value, int | float) and value == 0):
        raise PickleError(f"{setting(name, where)} is a setting that networks here do not have")
