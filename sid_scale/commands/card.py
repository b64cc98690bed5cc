"""Completes a generator folder for publication: model card, sample grid if it lacks one, VAE.

    sid-scale card runs/xs/generator --repo user/repo

The card (`README.md`) says what `config.json` says and what was measured: by the run itself, by
evaluations of these weights whose `metrics.json` is below `evaluation/` in the run's folder or the
generator's, and in files that `--metrics` names: a `metrics.json`, or any JSON object of names and
values, groups may be nested. Nothing is made up. An existing card is replaced. The grid shows seeds
0, 1, ... with the classes in turn.
"""

import argparse
from pathlib import Path

from sid_scale.commands.arguments import check_least, network, path
from sid_scale.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("generator", type=path, metavar="GENERATOR_DIR", help="its folder")
    parser.add_argument(
        "--metrics",
        type=path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="JSON of what was measured, besides what is found",
    )
    parser.add_argument("--run", type=path, metavar="DIR", help="its run, if it lies elsewhere")
    parser.add_argument("--repo", metavar="USER/REPO", help="its own id on the hub")
    parser.add_argument("--base-model", metavar="ID", help="the teacher's id on the hub")
    parser.add_argument("--dataset", metavar="ID", help="the id of its data on the hub")
    parser.add_argument(
        "--vae", type=network, metavar="DIR|NAME", help="a VAE to copy there as vae/"
    )
    parser.add_argument(
        "--samples", type=int, default=36, metavar="N", help="images in the grid (default 36)"
    )
    parser.add_argument("--redraw", action="store_true", help="draw the grid even if there is one")


def run(options: argparse.Namespace) -> int:
    check_least(options, samples=1)
    from sid_scale.generators.card import write_card
    from sid_scale.generators.folder import SAMPLES
    from sid_scale.hub.folders import local_folders

    _check_folders(options.generator, options.run)
    if options.vae is not None:
        _copy_vae(options.generator, local_folders({"--vae": options.vae})["--vae"])
    if options.redraw or not (options.generator / SAMPLES).is_file():
        _draw_samples(options.generator, options.samples)
    card = write_card(
        options.generator,
        options.metrics,
        base_model=options.base_model,
        dataset=options.dataset,
        repo=options.repo,
        run=options.run,
    )
    print(card)
    return 0


def _check_folders(generator: Path, run: Path | None) -> None:
    """Raises UsageError for what is no folder here, or no run's."""
    from sid_scale.generators.measured import EVALUATION
    from sid_scale.metrics_log import METRICS

    if not generator.is_dir():
        raise UsageError(
            f"{generator}: no such folder here: a card is written into it. Of a model on the hub "
            "`hf download NAME --local-dir FOLDER` makes one"
        )
    if run is not None and not ((run / METRICS).is_file() or (run / EVALUATION).is_dir()):
        raise UsageError(
            f"--run {run}: no run's folder: neither {METRICS} nor {EVALUATION}/ is there"
        )


def _copy_vae(folder: Path, vae: Path) -> None:
    """Makes a folder's VAE a part of it.

    Raises:
        SidScaleError: there is no VAE, or it cannot be copied.
    """
    from sid_scale.generators.card import CardError
    from sid_scale.generators.folder import adopt_vae, codec_of
    from sid_scale.networks.folder import read_description

    codec = codec_of(read_description(folder), folder, vae)
    try:
        adopt_vae(folder, codec)
    except OSError as error:
        raise CardError(f"{folder}: the VAE cannot be copied there: {error}") from error


def _draw_samples(folder: Path, count: int) -> None:
    """Writes the grid.

    Raises:
        SidScaleError: the generator cannot be used, or the grid not be written.
    """
    from sid_scale.generators.card import CardError
    from sid_scale.generators.folder import SAMPLES, classes_in_turn, write_samples
    from sid_scale.generators.generator import OneStepGenerator

    generator = OneStepGenerator.from_pretrained(folder)
    classes = classes_in_turn(count, generator.network.architecture.label_dim)
    try:
        print(write_samples(folder, generator.generate(classes, range(count))))
    except OSError as error:
        raise CardError(f"{folder / SAMPLES} cannot be written: {error}") from error
