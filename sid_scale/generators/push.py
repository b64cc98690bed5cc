"""A generator's folder, uploaded to the hub: `sid-scale push`.

What would not work there, or may not be published, is refused before anything is sent: a folder
without a card, a licence or metrics, with damaged weights, whose VAE is on this machine alone, or
whose card loads a model of another name or has figures of other weights.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from safetensors import SafetensorError, safe_open

from sid_scale.codecs import VAE_WEIGHTS, VAECodec
from sid_scale.errors import SidScaleError, first_line
from sid_scale.generators.card import CARD, MEASURED_WEIGHTS
from sid_scale.generators.diffusers_folder import own_pipeline_files
from sid_scale.generators.folder import VAE, codec_of, trained_for
from sid_scale.hashing import sha256_file
from sid_scale.hub.answers import LOG_IN, faults, status_of
from sid_scale.hub.fetch import FILES, LIBRARY
from sid_scale.hub.names import FetchError, HubError, Name, is_name
from sid_scale.networks.folder import WEIGHTS, NetworkFolder, load_network

MEASURED = re.compile(r"^## What was measured\n+\|", re.MULTILINE)
LOADED = re.compile(r'OneStepGenerator\.from_pretrained\("([\w.-]+/[\w.-]+)["@]')
MESSAGE = "Upload a generator with sid_scale"


class PushError(SidScaleError):
    """A folder that is not ready for the hub, or that it does not take; says why."""

    exit_status = 2


class Upload(NamedTuple):
    """What goes to the hub."""

    name: Name
    files: dict[str, Path]  # by their paths there
    left_out: list[str]  # paths of what is in the folder, too


def plan_upload(folder: Path, name: Name, *, unmeasured: bool = False) -> Upload:
    """The files of a generator's folder that go to the hub, checked.

    Args:
        unmeasured: whether a card without metrics will do.

    Raises:
        SidScaleError: something is missing or damaged; says what, and how to mend it.
    """
    network = load_network(folder)
    trained_for(network, folder)
    _check_vae(network, folder)
    _check_card(folder / CARD, name.repo, unmeasured=unmeasured)
    files = {path: folder / path for path in FILES if (folder / path).is_file()}
    files.pop(VAE_WEIGHTS, None)  # of a VAE's own folder
    files |= {path: folder / path for path in own_pipeline_files(folder)}
    return Upload(name, files, [path for path in _contents(folder) if path not in files])


def _contents(folder: Path) -> Iterator[str]:
    """All files in a folder, by their paths there; of a hidden folder its name alone."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            yield from (f"{path.name}/{inner}" for inner in _contents(path))
        else:
            yield path.name + ("/" if path.is_dir() else "")


def _check_vae(network: NetworkFolder, folder: Path) -> None:
    codec = codec_of(network, folder)
    if not isinstance(codec, VAECodec):
        return
    if codec.folder == folder / VAE:
        codec.check()
        _check_tensors(folder / VAE / VAE_WEIGHTS)
    elif codec.folder.exists() or not is_name(codec.folder):
        raise PushError(
            f"{folder}: its VAE is {codec.folder}, on this machine: `sid-scale card {folder} "
            f"--vae {codec.folder}` makes it a part of the folder"
        )


def _check_tensors(file: Path) -> None:
    try:
        with safe_open(file, framework="pt"):
            pass
    except SafetensorError as error:
        raise PushError(f"{file} is damaged ({error}): fetch or write it again") from error


def _check_card(card: Path, repo: str, *, unmeasured: bool) -> None:
    """Makes sure that a card states a licence and what was measured of the weights beside it, and
    names its model."""
    from huggingface_hub import ModelCard

    write = f"`sid-scale card {card.parent} --repo {repo} --metrics FILE`"
    try:
        text = card.read_text()
        data: Any = ModelCard(text, ignore_metadata_errors=False).data
    except FileNotFoundError as error:
        raise PushError(f"{card.parent}: no {CARD} there: {write} writes the card") from error
    except (OSError, ValueError, TypeError, LookupError, yaml.YAMLError) as error:
        reason = first_line(error)
        raise PushError(f"{card}: no model card ({reason}): {write} writes it anew") from error
    if str(data.get("license") or "unknown") == "unknown":
        raise PushError(
            f"{card}: no licence, which is the teacher's: state it there as `license: ID`, or as "
            f"`license` in `teacher_provenance` of config.json, from where {write} takes it"
        )
    if not (unmeasured or data.eval_results or MEASURED.search(text)):
        raise PushError(
            f"{card}: no metrics: measure with `sid-scale evaluate run`, then {write}; or push it "
            "with --unmeasured"
        )
    measured = data.get(MEASURED_WEIGHTS)  # a card that a person wrote does not say
    if measured is not None and measured != sha256_file(card.parent / WEIGHTS):
        raise PushError(
            f"{card}: its figures are of other weights than {WEIGHTS} beside it (SHA-256 "
            f"{measured!s:.10}): `sid-scale card {card.parent} --repo {repo}` writes it anew, with "
            "what was measured of these"
        )
    loaded = LOADED.findall(text)
    if loaded and repo not in loaded:
        raise PushError(
            f"{card}: its lines of Python load {loaded[0]}, not {repo}: `sid-scale card "
            f"{card.parent} --repo {repo}`, with --metrics as before, writes them anew"
        )


def upload(planned: Upload, *, private: bool = False) -> str:
    """Sends the files as one commit, to a model that is made if need be; returns its address.

    Args:
        private: whether none but its owner may see the model.

    Raises:
        HubError: there is no access token, or none with the right to write; or the hub cannot be
            reached.
        PushError: the model is there and public, though it shall be private; or the hub refuses
            the card.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    name, api = planned.name, HfApi(library_name=LIBRARY)
    if get_token() is None:
        raise HubError(f"{name}: no access token, which writing needs: {LOG_IN}")
    operations = [CommitOperationAdd(path, str(file)) for path, file in planned.files.items()]
    try:
        api.create_repo(name.repo, private=private or None, exist_ok=True)
        is_private = api.repo_info(name.repo).private
    except faults() as error:
        raise _explained(error, name) from error
    if private and not is_private:
        raise PushError(
            f"{name}: the model is there, and public: make it private on the hub, or leave "
            "--private out"
        )
    try:
        if name.revision is not None:
            api.create_branch(name.repo, branch=name.revision, exist_ok=True)
        commit = api.create_commit(
            name.repo, operations, commit_message=MESSAGE, revision=name.revision
        )
    except faults() as error:
        raise _explained(error, name) from error
    return str(commit.commit_url)


def _explained(error: Exception, name: Name) -> SidScaleError:
    from huggingface_hub import constants

    status, reason = status_of(error.__cause__ or error), first_line(error)
    if status == 401:
        return HubError(f"{name}: {constants.ENDPOINT} does not know the token: {LOG_IN}")
    if status == 403:
        return HubError(
            f"{name}: the access token gives no right to write there: take one that may write to "
            f"{name.repo.partition('/')[0]}, and {LOG_IN}"
        )
    if isinstance(error, ValueError) and status in (None, 400):
        return PushError(f"{name}: the hub refuses the upload: {' '.join(str(error).split())}")
    return FetchError(
        f"{name}: cannot be sent to {constants.ENDPOINT} ({reason}): nothing is published yet, and "
        "the same command begins anew"
    )
