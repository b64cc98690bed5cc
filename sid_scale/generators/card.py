"""The model card of a generator folder: `README.md` as model hubs read it.

What is written is what `config.json` says and what was measured; nothing is made up. The metadata
at the top follows huggingface_hub.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from sid_scale.atomic import atomic_write
from sid_scale.codecs import VAE_CONFIG
from sid_scale.errors import SidScaleError
from sid_scale.generators.card_facts import (
    METHODS,
    on_one_line,
    published_teacher,
    teacher_licence,
    title,
)
from sid_scale.generators.card_text import card_text
from sid_scale.generators.folder import CARD, SAMPLES, VAE, trained_for
from sid_scale.networks.folder import NetworkFolder, read_description

TAGS = ["image-generation", "distillation"]


class CardError(SidScaleError):
    """A card that cannot be written; the message says why."""


def write_card(
    folder: Path, metrics: Mapping[str, Any] | None = None, base_model: str | None = None
) -> Path:
    """Writes `README.md` into a generator folder, over one that is there.

    Args:
        folder: a generator's; if it holds `samples.png`, the card shows it.
        metrics: names and values that were measured; groups may be nested.
        base_model: the teacher's id on the hub, if it has one.

    Raises:
        SidScaleError: the folder holds no generator, or the card cannot be written.
    """
    network = read_description(folder)
    trained_for(network, folder)
    measured = flatten(metrics or {})
    data = metadata(network, measured, base_model)
    text = card_text(
        folder.resolve().name,
        network,
        measured,
        has_samples=(folder / SAMPLES).is_file(),
        has_vae=(folder / VAE / VAE_CONFIG).is_file(),
    )
    try:
        with atomic_write(folder / CARD) as partial:
            ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(partial)
    except OSError as error:
        raise CardError(f"{folder / CARD} cannot be written: {error}") from error
    return folder / CARD


def metadata(
    network: NetworkFolder, measured: Mapping[str, float | str], base_model: str | None = None
) -> ModelCardData:
    """What a hub reads at the top of a card."""
    provenance = network.provenance
    licence = teacher_licence(provenance)
    plain = re.fullmatch(r"[a-z0-9.\-]+", licence)  # an identifier, as the hub wants it
    published = published_teacher(provenance)
    data = published.data if published else None
    return ModelCardData(
        license=licence if plain else "other",
        license_name=None if plain else on_one_line(licence),
        library_name="sid_scale",
        tags=[
            *TAGS,
            network.architecture.family,
            "class-conditional" if network.architecture.label_dim else "unconditional",
            "one-step" if provenance.get("steps", 1) == 1 else "few-step",
            *(method for method in METHODS if method == provenance.get("method")),
        ],
        pipeline_tag="unconditional-image-generation",  # the hub has none for classes
        base_model=base_model or (published.base_model if published else None),
        datasets=[data.id] if data and data.is_on_hub else None,
        model_name=title(network) if data else None,
        eval_results=[
            EvalResult(
                "unconditional-image-generation", data.id, data.name, name, value, metric_name=name
            )
            for name, value in measured.items()
            if data and not isinstance(value, str)
        ]
        or None,
    )


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float | str]:
    """Numbers and texts under dotted names; lists and the like are left out."""
    flat: dict[str, float | str] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        elif isinstance(value, int | float | str) and not isinstance(value, bool):
            flat[f"{prefix}{name}"] = value
    return flat
