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
from sid_scale.codecs import STABILITY_VAE, VAE_CONFIG
from sid_scale.errors import SidScaleError
from sid_scale.generators.folder import SAMPLES, VAE, trained_for
from sid_scale.networks import parameter_count
from sid_scale.networks.folder import NetworkFolder, read_description
from sid_scale.networks.teachers import Publication, publication

CARD = "README.md"
TAGS = ["image-generation", "distillation"]
METHODS = {
    "sid": ("SiD", "Score identity Distillation, from the teacher alone"),
    "sida": ("SiDA", "Score identity Distillation with an adversarial loss on real data"),
    "sid2a": ("SiD2A", "SiDA that starts from a generator which SiD had made"),
}
FAMILIES = {"edm": "EDM", "edm2": "EDM2"}  # as people and papers call them
PAPERS = {
    "EDM": "https://arxiv.org/abs/2206.00364",
    "EDM2": "https://arxiv.org/abs/2312.02696",
    "DDO": "https://arxiv.org/abs/2503.01103",
    "SiD": "https://arxiv.org/abs/2404.04057",
    "SiDA": "https://arxiv.org/abs/2410.14919",
}
METHOD_PAPERS = {"sid": ("SiD",), "sida": ("SiD", "SiDA"), "sid2a": ("SiD", "SiDA")}
LICENCES = {
    "apache-2.0": "Apache-2.0.",
    "cc-by-nc-sa-4.0": "CC BY-NC-SA 4.0: name the source, no commercial use, and what is derived "
    "from it, as this generator, goes under the same licence.",
}


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
        license_name=None if plain else _line(licence),
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


def title(network: NetworkFolder) -> str:
    """A generator's name for people."""
    method = METHODS.get(str(network.provenance.get("method")), ("",))[0]
    family = network.architecture.family
    teacher = teacher_name(network.provenance) or FAMILIES.get(family, family)
    return " ".join(_line(part) for part in (teacher, method) if part)


def teacher_name(provenance: Mapping[str, Any]) -> str:
    """The teacher's published name, or else that of its folder; empty if nothing says it."""
    published = published_teacher(provenance)
    return published.name if published else str(provenance.get("teacher") or "")


def published_teacher(provenance: Mapping[str, Any]) -> Publication | None:
    """The published teacher that a generator was distilled from, known by its name."""
    return publication(_teacher_file(provenance))


def teacher_licence(provenance: Mapping[str, Any]) -> str:
    """Licence of the teacher that a generator was distilled from; "unknown" if nothing says so.

    A teacher folder states it as `license` in its provenance; published weights are known by name.
    """
    stated = _teacher(provenance).get("license")
    if isinstance(stated, str) and stated:
        return stated.lower() if stated.lower() in LICENCES else stated
    published = published_teacher(provenance)
    return published.license if published else "unknown"


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float | str]:
    """Numbers and texts under dotted names; lists and the like are left out."""
    flat: dict[str, float | str] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        elif isinstance(value, int | float | str) and not isinstance(value, bool):
            flat[f"{prefix}{name}"] = value
    return flat


# --- what people read ---------------------------------------------------------------------


def card_text(
    folder_name: str,
    network: NetworkFolder,
    measured: Mapping[str, float | str],
    *,
    has_samples: bool,
    has_vae: bool,
) -> str:
    """The card below its metadata, Markdown."""
    provenance = network.provenance
    steps = provenance.get("steps", 1)
    teacher = teacher_name(provenance)
    has_classes = network.architecture.label_dim > 0
    of_a_class = " of a class" if has_classes else ""
    sections = [
        f"# {title(network)}",
        f"A generator that makes an image{of_a_class} with "
        + ("one network evaluation" if steps == 1 else f"{steps} network evaluations")
        + ", distilled from "
        + (f"the diffusion model `{_line(teacher)}`." if teacher else "an unknown teacher."),
        f"![Samples]({SAMPLES})" if has_samples else "",
        "## How it was made",
        _table(_facts(network)),
        "## How to use it",
        _usage(
            folder_name, has_classes, needs_vae=network.codec.get("kind") == "vae" and not has_vae
        ),
        "## What was measured",
        _table(measured) if measured else "Nothing, when this card was written.",
        "## Licence",
        _licence(provenance, has_vae),
        "## Papers",
        "\n".join(f"- {name}: {PAPERS[name]}" for name in _papers(network)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _facts(network: NetworkFolder) -> dict[str, Any]:
    provenance, architecture = network.provenance, network.architecture
    settings = _group(provenance, "settings")
    rates = _group(settings, "learning_rate")
    objective = _group(settings, "objective")
    channels, height, width = architecture.sample_shape
    method = METHODS.get(str(provenance.get("method")))
    published = published_teacher(provenance)
    what = published.what if published else None
    known = {
        "teacher": teacher_name(provenance) or None,
        "what the teacher is": _teacher(provenance).get("what") or what,
        "SHA-256 of the teacher's weights": provenance.get("teacher_sha256"),
        "imported from": provenance.get("source"),
        "SHA-256 of that file": provenance.get("source_sha256"),
        "method": f"{method[0]}: {method[1]}" if method else provenance.get("method"),
        "started from": _start(_group(provenance, "generator_init")),
        "images seen": _thousands(provenance.get("images_seen")),
        "batch": settings.get("batch_size"),
        "learning rate, generator": rates.get("generator"),
        "alpha": objective.get("alpha"),
        "half-life of the average, images": _thousands(_group(settings, "ema").get("half_life")),
        "steps": provenance.get("steps", 1),
        "first noise level": provenance.get("init_sigma"),
        "parameters": _thousands(parameter_count(architecture)),
        "network's images": f"{channels} x {height} x {width}, "
        f"{architecture.label_dim or 'no'} classes, codec {network.codec.get('kind')}",
    }
    return {name: value for name, value in known.items() if value is not None}


def _start(generator: Mapping[str, Any]) -> str | None:
    """What an earlier generator says of itself in a few words."""
    method = METHODS.get(str(generator.get("method")), ("an unknown method",))[0]
    seen = _thousands(generator.get("images_seen")) or "an unknown number of"
    return f"a generator made with {method}, after {seen} images" if generator else None


def _usage(folder_name: str, has_classes: bool, needs_vae: bool) -> str:
    classes = "[0, 0, 1]" if has_classes else "None"
    option = "--classes 0,1 " if has_classes else ""
    lines = [
        "```python",
        "from sid_scale import OneStepGenerator",
        "",
        f'generator = OneStepGenerator.from_pretrained("{_line(folder_name)}").to("cuda")',
        f"images = generator.generate(class_labels={classes}, seeds=[0, 1, 0])  # uint8, NCHW",
        "```",
        "",
        f"or `sid-scale generate --generator {_line(folder_name)} "
        f"{option}--seeds 0-63 --out images --grid`.",
    ]
    if needs_vae:
        lines += [
            "",
            "It makes latents; the VAE that decodes them is not in this folder. Put it there as "
            f"`{VAE}/`, or name its folder with `vae=` or `--vae`. For EDM2's ImageNet-512 models "
            f"it is `{STABILITY_VAE}`: `hf download {STABILITY_VAE} "
            f"--local-dir {VAE}`.",
        ]
    return "\n".join(lines)


def _licence(provenance: Mapping[str, Any], has_vae: bool) -> str:
    licence = teacher_licence(provenance)
    if licence == "unknown":
        text = "The licence of the teacher is unknown: find it out before this is passed on."
    else:
        text = f"That of the teacher. {LICENCES.get(licence, _line(licence))}"
        published = published_teacher(provenance)
        if published and "license" not in _teacher(provenance):
            text += (
                f" (Known by its name, `{_line(_teacher_file(provenance))}`: "
                f"{published.publisher} publishes the {published.project} weights so.)"
            )
    return text + (f" The VAE in `{VAE}/` has a licence of its own." if has_vae else "")


def _table(rows: Mapping[str, Any]) -> str:
    body = [f"| {_line(name)} | {_line(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *body])


def _line(value: Any) -> str:
    """On one line, and no Markdown table, code or quotation ends in it."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return re.sub(r"\s+", " ", text).replace("|", "/").replace("`", "'").replace('"', "'")


def _thousands(number: Any) -> str | None:
    return f"{number:,.0f}" if isinstance(number, int | float) else None


def _papers(network: NetworkFolder) -> list[str]:
    """Names in PAPERS: the teacher's or its family's, and the method's or all that it may be."""
    published = published_teacher(network.provenance)
    family = FAMILIES.get(network.architecture.family)
    of_teacher = published.papers if published else (family,) if family else ()
    method = network.provenance.get("method")
    of_method = METHOD_PAPERS.get(str(method), ()) if method else ("SiD", "SiDA")
    return [*of_teacher, *of_method]


def _teacher_file(provenance: Mapping[str, Any]) -> str:
    """The file that the teacher was imported from, or else its folder."""
    return str(_teacher(provenance).get("source") or provenance.get("teacher") or "")


def _teacher(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    return _group(provenance, "teacher_provenance")


def _group(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    inner = settings.get(name)
    return inner if isinstance(inner, Mapping) else {}
