"""What a model card knows of a generator beyond its numbers: its name, teacher, papers and licence.

It comes from the generator's `config.json` and, for a teacher that is known by its name, from
`networks/teachers.py`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from sid_scale.hub.names import parse_name
from sid_scale.measurements import group
from sid_scale.networks.folder import NetworkFolder
from sid_scale.networks.teachers import Publication, publication

METHODS = {
    "sid": ("SiD", "Score identity Distillation, from the teacher alone"),
    "sida": ("SiDA", "Score identity Distillation with an adversarial loss on real data"),
    "sid2a": ("SiD2A", "SiDA that starts from a generator which SiD had made"),
    "gdd": ("GDD", "distillation by an adversarial loss on real data alone"),
    "gdd_i": ("GDD-I", "GDD that leaves most of the teacher's convolutions as they are"),
}
ROLES = {"teacher", "generator", "network", "model"}  # names of folders that distinguish nothing
REVERSE_KL = "reverse_kl"  # the divergence of SiD, which weighs no samples
FAMILIES = {"edm": "EDM", "edm2": "EDM2"}  # as people and papers call them
PAPERS = {
    "EDM": "https://arxiv.org/abs/2206.00364",
    "EDM2": "https://arxiv.org/abs/2312.02696",
    "DDO": "https://arxiv.org/abs/2503.01103",
    "SiD": "https://arxiv.org/abs/2404.04057",
    "SiDA": "https://arxiv.org/abs/2410.14919",
    "GDD": "https://arxiv.org/abs/2405.20750",
    "DMD2": "https://arxiv.org/abs/2405.14867",
    "Uni-Instruct": "https://arxiv.org/abs/2505.20755",
    "f-distill": "https://arxiv.org/abs/2502.15681",
    "Autoguidance": "https://arxiv.org/abs/2406.02507",
    "Guidance in a limited interval": "https://arxiv.org/abs/2404.07724",
    "SiD-LSG": "https://arxiv.org/abs/2406.01561",
}
METHOD_PAPERS = {
    "sid": ("SiD",),
    "sida": ("SiD", "SiDA"),
    "sid2a": ("SiD", "SiDA"),
    "gdd": ("GDD",),
    "gdd_i": ("GDD",),
}
LICENCES = {
    "apache-2.0": "Apache-2.0.",
    "cc-by-nc-sa-4.0": "CC BY-NC-SA 4.0: name the source, no commercial use, and what is derived "
    "from it, as this generator, goes under the same licence.",
}


def title(network: NetworkFolder) -> str:
    """A generator's name for people."""
    method = METHODS.get(str(network.provenance.get("method")), ("",))[0]
    family, teacher = network.architecture.family, teacher_name(network.provenance)
    if not teacher or teacher.lower() in ROLES:
        teacher = FAMILIES.get(family, family)
    return " ".join(on_one_line(part) for part in (teacher, method) if part)


def teacher_name(provenance: Mapping[str, Any]) -> str:
    """The teacher's published name, or else that of its folder; empty if nothing says it."""
    published = published_teacher(provenance)
    return published.name if published else str(provenance.get("teacher") or "")


def teacher_in_words(provenance: Mapping[str, Any]) -> str:
    """What a generator was distilled from, in the middle of a sentence."""
    name, what = teacher_name(provenance), teacher_facts(provenance).get("what")
    if what and name.lower() in ROLES:
        return f"a {on_one_line(what)}"
    return f"the diffusion model `{on_one_line(name)}`" if name else "an unknown teacher"


def published_teacher(provenance: Mapping[str, Any]) -> Publication | None:
    """The published teacher that a generator was distilled from, known by its name."""
    return publication(teacher_file(provenance))


def base_model_of(provenance: Mapping[str, Any]) -> str | None:
    """The teacher's id on the hub: where the run had it from, or where it is published."""
    name = parse_name(str(provenance.get("teacher_on_hub") or ""))
    published = published_teacher(provenance)
    return name.repo if name else published.base_model if published else None


def teacher_licence(provenance: Mapping[str, Any]) -> str:
    """Licence of the teacher that a generator was distilled from; "unknown" if nothing says so.

    A teacher folder states it as `license` in its provenance; published weights are known by name.
    """
    stated = teacher_facts(provenance).get("license")
    if isinstance(stated, str) and stated:
        return stated.lower() if stated.lower() in LICENCES else stated
    published = published_teacher(provenance)
    return published.license if published else "unknown"


def papers(network: NetworkFolder) -> list[str]:
    """Names in PAPERS: the teacher's or its family's, and the method's or all that it may be."""
    published = published_teacher(network.provenance)
    family = FAMILIES.get(network.architecture.family)
    of_teacher = published.papers if published else (family,) if family else ()
    method = network.provenance.get("method")
    of_method = METHOD_PAPERS.get(str(method), ()) if method else ("SiD", "SiDA")
    return [*of_teacher, *of_method, *_option_papers(network.provenance)]


def _option_papers(provenance: Mapping[str, Any]) -> Iterator[str]:
    """Where options of SiD's family that a run took come from."""
    objective = group(group(provenance, "settings"), "objective")
    if objective.get("gradient") == "kl":
        yield "DMD2"
    if objective.get("divergence", REVERSE_KL) != REVERSE_KL:
        yield from ("Uni-Instruct", "f-distill")
    if objective.get("guide"):
        yield "Autoguidance"
    if objective.get("guidance_sigma"):
        yield "Guidance in a limited interval"
    if objective.get("guidance_fake_score", 1) != 1:
        yield "SiD-LSG"


def on_one_line(value: Any) -> str:
    """On one line, and no Markdown table, code or quotation ends in it."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return re.sub(r"\s+", " ", text).replace("|", "/").replace("`", "'").replace('"', "'")


def teacher_file(provenance: Mapping[str, Any]) -> str:
    """The file that the teacher was imported from, or else its folder."""
    return str(teacher_facts(provenance).get("source") or provenance.get("teacher") or "")


def teacher_facts(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the generator's provenance says of its teacher's."""
    return group(provenance, "teacher_provenance")
