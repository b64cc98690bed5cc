"""A model card below its metadata, as people read it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sid_scale.codecs import STABILITY_VAE
from sid_scale.generators.card_facts import (
    LICENCES,
    METHODS,
    PAPERS,
    REVERSE_KL,
    on_one_line,
    papers,
    published_teacher,
    teacher_facts,
    teacher_file,
    teacher_in_words,
    teacher_licence,
    teacher_name,
    title,
)
from sid_scale.generators.folder import POST_HOC_EMA, SAMPLES, VAE
from sid_scale.generators.measured import Figure
from sid_scale.measurements import group, is_number
from sid_scale.networks import parameter_count
from sid_scale.networks.folder import NetworkFolder

PLACEHOLDER = "user/repo"  # of a generator whose name on the hub is not known
SHORT_HASH = 10  # characters of a SHA-256 that are shown


class Extras(NamedTuple):
    """What a card depends on besides the network and its figures."""

    repo: str | None = None  # its id on the hub
    has_samples: bool = False
    has_vae: bool = False
    for_diffusers: bool = False  # the folder is one that diffusers reads, too


def card_text(network: NetworkFolder, figures: Sequence[Figure], extras: Extras) -> str:
    """The card below its metadata, Markdown."""
    provenance = network.provenance
    steps = provenance.get("steps", 1)
    of_a_class = " of a class" if network.architecture.label_dim > 0 else ""
    sections = [
        f"# {title(network)}",
        f"A generator that makes an image{of_a_class} with "
        + ("one network evaluation" if steps == 1 else f"{steps} network evaluations")
        + f", distilled from {teacher_in_words(provenance)}.",
        f"![Samples]({SAMPLES})" if extras.has_samples else "",
        "## How to use it",
        _usage(network, extras),
        "## What was measured",
        _measured(figures) if figures else "Nothing, when this card was written.",
        "## How it was made",
        _table(_facts(network)),
        "## Licence",
        _licence(provenance, extras.has_vae),
        "## Papers",
        "\n".join(f"- {name}: {PAPERS[name]}" for name in papers(network)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _facts(network: NetworkFolder) -> dict[str, Any]:
    provenance, architecture = network.provenance, network.architecture
    settings = group(provenance, "settings")
    rates = group(settings, "learning_rate")
    objective = group(settings, "objective")
    channels, height, width = architecture.sample_shape
    method = METHODS.get(str(provenance.get("method")))
    published = published_teacher(provenance)
    what = published.what if published else None
    known = {
        "teacher": teacher_name(provenance) or None,
        "what the teacher is": teacher_facts(provenance).get("what") or what,
        "SHA-256 of the teacher's weights": provenance.get("teacher_sha256"),
        "imported from": provenance.get("source"),
        "SHA-256 of that file": provenance.get("source_sha256"),
        "method": f"{method[0]}: {method[1]}" if method else provenance.get("method"),
        "started from": _start(group(provenance, "generator_init")),
        "images seen": _thousands(provenance.get("images_seen")),
        "batch": settings.get("batch_size"),
        "learning rate, generator": rates.get("generator"),
        "alpha": objective.get("alpha"),
        **_average(provenance, group(settings, "ema")),
        **_options(provenance, objective),
        **_seen_through(provenance),
        "noise level at which the teacher's encoder looked": objective.get("teacher_sigma"),
        "weights left as they were": _listed(objective.get("freeze")),
        "steps": provenance.get("steps", 1),
        "first noise level": provenance.get("init_sigma"),
        "parameters": _thousands(parameter_count(architecture)),
        "network's images": f"{channels} x {height} x {width}, "
        f"{architecture.label_dim or 'no'} classes, codec {network.codec.get('kind')}",
    }
    return {name: value for name, value in known.items() if value is not None}


def _average(provenance: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the weights are an average over: as the run published it, or as it was reconstructed."""
    post_hoc = group(provenance, POST_HOC_EMA)
    if not post_hoc:
        return {"half-life of the average, images": _thousands(settings.get("half_life"))}
    snapshots = group(post_hoc, "snapshots")
    listed = [of_width for of_width in snapshots.values() if isinstance(of_width, list)]
    moments = {str(moment) for of_width in listed for moment in of_width}
    return {
        "relative width of the average, reconstructed": post_hoc.get("relative_width"),
        "from averages of relative widths": _listed(sorted(snapshots)),
        "at so many moments": len(moments) or None,
    }


def _options(provenance: Mapping[str, Any], objective: Mapping[str, Any]) -> dict[str, Any]:
    """What a run of SiD's family did otherwise than the papers, by what is said of each."""
    digests = group(provenance, "guides_sha256")
    kl = objective.get("gradient") == "kl"
    updates, divergence = objective.get("fake_score_updates"), objective.get("divergence")
    of_fake_score = objective.get("guidance_fake_score")
    return {
        "gradient of the generator's loss": "that of the KL divergence" if kl else None,
        "updates of the fake score for one of the generator": updates if updates != 1 else None,
        "divergence that weighs samples": divergence if divergence != REVERSE_KL else None,
        "guide of the teacher": objective.get("guide"),
        "guidance of the teacher": objective.get("guidance"),
        "guidance of the fake score": of_fake_score if digests else None,
        "noise levels with guidance": _listed(objective.get("guidance_sigma")),
        **{f"SHA-256 of the weights of the {name}": digest for name, digest in digests.items()},
    }


def _seen_through(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The pretrained networks that the loss looked at images through, by what is said of each."""
    digests = group(provenance, "files_sha256")
    return {f"SHA-256 of the weights of feature network {name}": d for name, d in digests.items()}


def _start(generator: Mapping[str, Any]) -> str | None:
    """What an earlier generator says of itself in a few words."""
    method = METHODS.get(str(generator.get("method")), ("an unknown method",))[0]
    seen = _thousands(generator.get("images_seen")) or "an unknown number of"
    return f"a generator made with {method}, after {seen} images" if generator else None


def _usage(network: NetworkFolder, extras: Extras) -> str:
    known = network.architecture.label_dim
    labels = [0, 0, min(1, known - 1)] if known else None
    repo = extras.repo or PLACEHOLDER
    lines = [
        "```python",
        "from sid_scale import OneStepGenerator",
        f'images = OneStepGenerator.from_pretrained("{repo}").generate({labels}, seeds=[0, 1, 0])',
        "```",
        "",
        '`images` are uint8, (N, 3, H, W); `.to("cuda")` before `.generate` computes on a GPU. Or '
        f"`sid-scale generate --generator {repo} {'--classes 0 ' if known else ''}--seeds 0-63 "
        "--out images --grid`."
        + ("" if extras.repo else f" `{repo}` stands for this repository's name, or a folder's."),
    ]
    if extras.for_diffusers:
        lines += [
            "",
            "In diffusers, where sid_scale is installed:",
            "",
            "```python",
            "from diffusers import DiffusionPipeline",
            f'pipe = DiffusionPipeline.from_pretrained("{repo}", custom_pipeline="pipeline", '
            "trust_remote_code=True)",
            f"images = pipe({labels}, seeds=[0, 1, 0]).images",
            "```",
        ]
    if network.codec.get("kind") == "vae" and not extras.has_vae:
        lines += [
            "",
            "It makes latents; the VAE that decodes them is not in this folder. Put it there as "
            f"`{VAE}/`, or name its folder with `vae=` or `--vae`. For EDM2's ImageNet-512 models "
            f"it is `{STABILITY_VAE}`: `hf download {STABILITY_VAE} "
            f"--local-dir {VAE}`.",
        ]
    return "\n".join(lines)


def _measured(figures: Sequence[Figure]) -> str:
    """The figures, a row each, with what is known of how they were measured."""
    rows = [
        f"| {on_one_line(f.metric)} | {on_one_line(f.value)} | {on_one_line(_protocol(f))} |"
        for f in figures
    ]
    return "\n".join(["| metric | value | measured |", "|---|---|---|", *rows])


def _protocol(figure: Figure) -> str:
    """How a figure was measured, in a few words; empty if nothing is known."""
    known = figure.protocol
    repeats, first, images = known.get("repeats", 1), known.get("first_seed"), known.get("images")
    told = [f"{images:,} images" if images else ""]
    if repeats > 1:
        told.append(f"mean of {repeats} times (min {known['min']:.6g}, std {known['std']:.3g})")
    if images and first is not None:
        told.append(f"seeds {first:,} to {first + images * repeats - 1:,}")
    told += [f"classes: {known['labels']}" if "labels" in known else ""]
    told += [f"NFE {known['nfe']}" if "nfe" in known else "", str(known.get("dtype", ""))]
    name, digest = known.get("reference", "a reference"), known.get("reference_sha256")
    if "reference" in known or digest:
        told.append(f"against {name}" + (f" (SHA-256 {digest[:SHORT_HASH]})" if digest else ""))
    told.append(f"in {known['file']}" if "file" in known else "")
    return ", ".join(part for part in told if part)


def _licence(provenance: Mapping[str, Any], has_vae: bool) -> str:
    licence = teacher_licence(provenance)
    if licence == "unknown":
        text = "The licence of the teacher is unknown: find it out before this is passed on."
    else:
        text = f"That of the teacher. {LICENCES.get(licence, on_one_line(licence))}"
        published = published_teacher(provenance)
        if published and "license" not in teacher_facts(provenance):
            text += (
                f" (Known by its name, `{on_one_line(teacher_file(provenance))}`: "
                f"{published.publisher} publishes the {published.project} weights so.)"
            )
    if used := group(provenance, "files_sha256"):
        text += (
            " The loss looked at images through pretrained networks, which are not in this folder "
            f"and have licences of their own: {on_one_line(', '.join(used))}."
        )
    return text + (f" The VAE in `{VAE}/` has a licence of its own." if has_vae else "")


def _table(rows: Mapping[str, Any]) -> str:
    body = [f"| {on_one_line(name)} | {on_one_line(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *body])


def _listed(values: Any) -> str | None:
    return ", ".join(map(str, values)) or None if isinstance(values, list | tuple) else None


def _thousands(number: Any) -> str | None:
    return f"{number:,.0f}" if is_number(number) else None
