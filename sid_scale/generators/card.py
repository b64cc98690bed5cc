"""The model card of a generator folder: `README.md` as model hubs read it.

What is written is what `config.json` says and what was measured (`measured.py`); nothing is made
up. The metadata at the top follows huggingface_hub.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from sid_scale.atomic import atomic_write
from sid_scale.codecs import VAE_CONFIG
from sid_scale.errors import SidScaleError, UsageError
from sid_scale.generators.card_facts import (
    METHODS,
    base_model_of,
    on_one_line,
    published_teacher,
    teacher_licence,
    title,
)
from sid_scale.generators.card_text import Extras, card_text
from sid_scale.generators.diffusers_folder import INDEX
from sid_scale.generators.folder import CARD, SAMPLES, VAE, trained_for
from sid_scale.generators.measured import Figure, find_figures
from sid_scale.hashing import sha256_file
from sid_scale.networks.folder import WEIGHTS, NetworkFolder, read_description
from sid_scale.networks.teachers import DataSet

TAGS = ["image-generation", "distillation"]
TASK = "unconditional-image-generation"  # the hub has none for classes
MEASURED_WEIGHTS = "weights_sha256"  # in the metadata: of the weights that the figures are of


class CardError(SidScaleError):
    """A card that cannot be written; the message says why."""


def write_card(
    folder: Path,
    metrics: Sequence[Path] = (),
    *,
    base_model: str | None = None,
    dataset: str | None = None,
    repo: str | None = None,
    run: Path | None = None,
) -> Path:
    """Writes `README.md` into a generator folder, over one that is there.

    Args:
        folder: a generator's; if it holds `samples.png`, the card shows it.
        metrics: files of figures besides those that are found (`find_figures`).
        base_model: the teacher's id on the hub, if it has one.
        dataset: id on the hub of the data that it was trained on.
        repo: its own id on the hub, `user/repo`.
        run: folder of its run, if it does not lie there.

    Raises:
        SidScaleError: the folder holds no generator, an id cannot be, a file of figures cannot be
            read, or the card cannot be written.
    """
    for given in (base_model, dataset, repo):
        _check_id(given)
    network = read_description(folder)
    trained_for(network, folder)
    try:
        figures = find_figures(folder, run, metrics)
        extras = Extras(
            repo,
            has_samples=(folder / SAMPLES).is_file(),
            has_vae=(folder / VAE / VAE_CONFIG).is_file(),
            for_diffusers=(folder / INDEX).is_file(),
        )
        data = metadata(network, figures, base_model, dataset)
        if extras.has_samples:
            data["widget"] = [{"text": "Samples", "output": {"url": SAMPLES}}]
        if figures:
            data[MEASURED_WEIGHTS] = sha256_file(folder / WEIGHTS)
        text = card_text(network, figures, extras)
        with atomic_write(folder / CARD) as partial:
            ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(partial)
    except OSError as error:
        raise CardError(f"{folder / CARD} cannot be written: {error}") from error
    return folder / CARD


def metadata(
    network: NetworkFolder,
    figures: Sequence[Figure],
    base_model: str | None = None,
    dataset: str | None = None,
) -> ModelCardData:
    """What a hub reads at the top of a card."""
    provenance = network.provenance
    licence = teacher_licence(provenance)
    plain = re.fullmatch(r"[a-z0-9.\-]+", licence)  # an identifier, as the hub wants it
    published = published_teacher(provenance)
    if dataset is None and published and published.data.is_on_hub:
        dataset = published.data.id
    results = [_result(figure, network, dataset) for figure in figures if _is_numeric(figure)]
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
        pipeline_tag=TASK,
        base_model=base_model or base_model_of(provenance),
        datasets=[dataset] if dataset else None,
        model_name=title(network) if results else None,
        eval_results=results or None,
    )


def _result(figure: Figure, network: NetworkFolder, dataset: str | None) -> EvalResult:
    """A figure as the hub has it; it wants data to be named, where they are unknown, too."""
    published = published_teacher(network.provenance)
    data = published.data if published else None
    if data is None or dataset not in (None, data.id):
        data = DataSet(dataset or "unknown", dataset or "unknown")
    return EvalResult(
        task_type=TASK,
        dataset_type=data.id,
        dataset_name=data.name,
        metric_type=on_one_line(figure.metric),
        metric_name=on_one_line(figure.metric),
        metric_value=figure.value,
        metric_args=dict(figure.protocol) or None,
    )


def _is_numeric(figure: Figure) -> bool:
    return not isinstance(figure.value, str)


def _check_id(name: str | None) -> None:
    """Raises UsageError for what can be no id of a model or data set on the hub."""
    try:
        if name is not None:
            validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"{name!r:.80} is no id on the hub, such as user/repo") from error
