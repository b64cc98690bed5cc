"""Uploads a generator's folder to the hub, from where `--generator user/repo` takes it.

    sid-scale card runs/xs/generator --repo user/repo
    sid-scale push runs/xs/generator user/repo --dry-run
    sid-scale push runs/xs/generator user/repo --private

The folder must hold sound weights, its VAE if it needs one, and a card that names the model, its
licence and what was measured. Weights, config.json, VAE, class names, sample grid, card and what
`export --diffusers` added are sent, as one commit, and nothing else that is there. It needs an
access token: `hf auth login`, or HF_TOKEN.
"""

import argparse

from sid_scale.commands.arguments import path
from sid_scale.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=path, metavar="FOLDER", help="a generator's")
    parser.add_argument("name", metavar="user/repo", help="the model, which is made if need be")
    parser.add_argument("--private", action="store_true", help="make a model that you alone see")
    parser.add_argument(
        "--revision", metavar="BRANCH", help="a branch, which is made if need be (default: main)"
    )
    parser.add_argument(
        "--unmeasured", action="store_true", help="push a generator whose card has no metrics, too"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check all, say what would be sent, and send nothing"
    )


def run(options: argparse.Namespace) -> int:
    from sid_scale.generators.push import plan_upload, upload
    from sid_scale.hub.names import NAMES, at_revision, is_commit, parse_name

    name = parse_name(options.name)
    if name is None:
        raise UsageError(f"{options.name}: no name of a model on the hub, which is {NAMES}")
    if options.revision is not None:
        name = at_revision(name, options.revision)
    if is_commit(name.revision):
        raise UsageError(f"{name}: a commit is never written again: name a branch")
    planned = plan_upload(options.folder, name, unmeasured=options.unmeasured)
    for place, file in planned.files.items():
        print(f"{file.stat().st_size:>16,}  {place}")
    for left_out in planned.left_out:
        print(f"{'left out':>16}  {left_out}")
    if options.dry_run:
        print(f"{name}: checked, and nothing sent")
    else:
        print(upload(planned, private=options.private))
    return 0
