"""What was measured of a generator, and how: found where evaluations leave it.

    RUN/evaluation/**/metrics.json     `sid-scale evaluate`, and sweeps of `sid-scale phema`
    FOLDER/evaluation/**/metrics.json  the same, of a folder that lies in no run
    RUN/metrics.jsonl                  the run's own evaluation
    RUN/summary.json                   the demo's judge

A metrics.json tells the SHA-256 of the weights that it is of. The last two tell how many images a
generator had seen, and are of the folders that a run writes itself.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from sid_scale.generators.folder import POST_HOC_EMA
from sid_scale.hashing import sha256_file
from sid_scale.measurements import (
    DEMO_FD,
    DEMO_SUMMARY,
    METRICS_FILE,
    ForeignFileError,
    MeasurementError,
    figures_in,
    group,
    integer,
    is_number,
    read_metrics_file,
    read_object,
    read_own_figures,
)
from sid_scale.metrics_log import METRICS
from sid_scale.networks.folder import WEIGHTS, NetworkFolder, read_description

EVALUATION, SNAPSHOTS = "evaluation", "snapshots"
WRITTEN_BY_RUNS = ("generator", "best_generator")
DEMO_FIGURE = "student_fd"
DEMO_REFERENCE = "all real digits"


@dataclass(frozen=True)
class Figure:
    """One metric of one evaluation."""

    metric: str
    value: float | str
    # What is known of how it was measured: images, repeats, min, std, first_seed, labels,
    # reference, reference_sha256, nfe, dtype, file.
    protocol: Mapping[str, Any] = field(default_factory=dict)


def find_figures(folder: Path, run: Path | None = None, files: Sequence[Path] = ()) -> list[Figure]:
    """All that was measured of the generator in a folder, of most images first.

    A `metrics.json` of another program below evaluation/ is passed over, with a note that names it.

    Args:
        folder: the generator's.
        run: folder of its run; by default the one that it lies in.
        files: files besides: a `metrics.json`, or any JSON object of names and values, whose groups
            may be nested, and which tells nothing of how they were measured.

    Raises:
        MeasurementError: a file cannot be read, or one of `files` is of another network.
        OSError: the weights or metrics.jsonl cannot be read.
    """
    network, own_run = read_description(folder), _run_that_wrote(folder)
    weights_hash = cache(lambda: sha256_file(folder / WEIGHTS))  # of gigabytes: if it is needed
    found = [figure for file in files for figure in _given(file, weights_hash)]
    around = run or own_run or _run_around(folder) or folder
    for place in dict.fromkeys((around.resolve(), folder.resolve())):
        found += _evaluated(place, files, weights_hash)
    if own_run is not None and POST_HOC_EMA not in network.provenance:
        found += _measured_by_run(own_run, network)
    return sorted(found, key=lambda figure: -figure.protocol.get("images", 0))


# --- where a generator's run is -----------------------------------------------------------


def _run_that_wrote(folder: Path) -> Path | None:
    """The run that a folder is an output of, by its name."""
    folder = folder.resolve()
    if folder.parent.name == SNAPSHOTS:
        return _run_around(folder.parent)
    return _run_around(folder) if folder.name in WRITTEN_BY_RUNS else None


def _run_around(folder: Path) -> Path | None:
    parent = folder.resolve().parent
    return parent if (parent / METRICS).is_file() else None


# --- figures of files ---------------------------------------------------------------------


def _given(file: Path, weights_hash: Callable[[], str]) -> list[Figure]:
    fields = read_object(file)
    if "format_version" not in fields:
        return [Figure(name, value) for name, value in _flatten(fields).items()]
    fields = read_metrics_file(file)
    if group(fields, "network").get("sha256") != weights_hash():
        raise MeasurementError(f"{file}: figures of other weights than this generator's")
    return _figures(fields, file.name)


def _evaluated(
    place: Path, besides: Sequence[Path], weights_hash: Callable[[], str]
) -> list[Figure]:
    """Of the generator, all that evaluations in a folder have measured."""
    taken = {file.resolve() for file in besides}
    found = []
    for file in sorted(place.glob(f"{EVALUATION}/**/{METRICS_FILE}")):
        if file.resolve() not in taken:
            try:
                fields = read_metrics_file(file)
            except ForeignFileError as error:
                print(f"note: {error}; it is passed over", file=sys.stderr)
                continue
            except MeasurementError as error:
                raise MeasurementError(
                    f"{error}; measure again with `sid-scale evaluate`, or move the file out of "
                    f"{EVALUATION}/"
                ) from error
            network = group(fields, "network")
            if network.get("kind") == "generator" and network.get("sha256") == weights_hash():
                found += _figures(fields, str(file.relative_to(place)))
    return found


def _figures(fields: Mapping[str, Any], file: str) -> list[Figure]:
    """Those of a `metrics.json`."""
    settings = group(fields, "settings")
    shared = {
        "images": integer(fields.get("num")),
        "first_seed": integer(fields.get("first_seed")),
        "labels": _name(settings.get("labels")),
        "nfe": integer(group(fields, "network").get("evaluations")),
        "dtype": _name(settings.get("dtype")),
        "file": file,
    }
    return [
        Figure(metric, value, _known({**shared, **_of_metric(fields, metric)}))
        for metric, value in figures_in(fields).items()
    ]


def _of_metric(fields: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """What a `metrics.json` says of one metric alone: its repeats, and what it compares with."""
    reference = group(group(fields, "references"), metric)
    known: dict[str, Any] = {
        "reference": _name(reference.get("file")),
        "reference_sha256": _name(reference.get("sha256")),
    }
    repeats = group(group(fields, "repeats"), metric)
    values, least, std = (repeats.get(name) for name in ("values", "min", "std"))
    if isinstance(values, list) and len(values) > 1 and is_number(least) and is_number(std):
        known |= {"repeats": len(values), "min": least, "std": std}
    return known


def _measured_by_run(run: Path, network: NetworkFolder) -> list[Figure]:
    """What a run, or the demo's judge, has measured of a folder that the run wrote."""
    seen = integer(network.provenance.get("images_seen"))
    steps = network.provenance.get("steps", 1)
    if seen is None:
        return []
    figures, basis = read_own_figures(run, seen)
    references = group(basis, "references")
    shared = {
        "images": integer(basis.get("num")),
        "first_seed": integer(basis.get("first_seed")),
        "labels": _name(basis.get("labels")),
        "nfe": steps,
        "file": METRICS,
    }
    found = [
        Figure(name, value, _known({**shared, "reference_sha256": _name(references.get(name))}))
        for name, value in figures.items()
    ]
    if (run / DEMO_SUMMARY).is_file():
        summary = read_object(run / DEMO_SUMMARY)
        value = summary.get(DEMO_FIGURE)
        if is_number(value) and integer(summary.get("images_seen")) == seen:
            images = integer(summary.get("judged_images"))
            protocol = {"images": images, "reference": DEMO_REFERENCE, "nfe": steps}
            found.append(Figure(DEMO_FD, value, _known({**protocol, "file": DEMO_SUMMARY})))
    return found


def _known(protocol: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in protocol.items() if value is not None}


def _name(text: Any) -> str | None:
    """A text; of a path its last part, the others mean nothing elsewhere."""
    return Path(text).name if isinstance(text, str) and text else None


def _flatten(fields: Mapping[str, Any], prefix: str = "") -> dict[str, float | str]:
    """Numbers and texts under dotted names; lists and the like are left out."""
    flat: dict[str, float | str] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        elif is_number(value) or isinstance(value, str):
            flat[f"{prefix}{name}"] = value
    return flat
