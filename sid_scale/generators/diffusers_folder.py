"""A generator's folder that diffusers reads, too.

Beside what `folder.py` names, three small files:

    model_index.json        the parts of the pipeline: the generator, and the VAE if it has one
    pipeline.py             one line: it imports `OneStepPipeline` from this package
    generator/MODULE.py     one line: the same for the part that is no class of diffusers

diffusers runs the two lines when it is told to (`trust_remote_code=True`). Nothing here does. The
hub takes a part of another library only if a file in the part's own folder has the library's name.
"""

import json
import os
import shutil
from pathlib import Path

from sid_scale.atomic import atomic_write
from sid_scale.class_lists import CLASS_NAMES
from sid_scale.codecs import Codec, VAECodec
from sid_scale.generators.folder import CARD, SAMPLES, VAE, GeneratorError, adopt_vae
from sid_scale.networks.folder import CONFIG, WEIGHTS, refuse_other_folder, take_name

INDEX, PIPELINE_FILE = "model_index.json", "pipeline.py"
NETWORK = "generator"  # the part's name
MODULE = "sid_scale.generators.diffusers_pipeline"
PIPELINE_CLASS, NETWORK_CLASS = "OneStepPipeline", "OneStepNetwork"
DIFFUSERS_VERSION = "0.35.0"  # the first that is known to read this


def write_diffusers_folder(
    source: Path, folder: Path, codec: Codec, *, replace: bool = False
) -> Path:
    """Makes `folder` the generator folder `source` with all that diffusers needs.

    Args:
        source: a generator's folder; as `folder` too, it is completed where it is.
        folder: what is written.
        codec: the generator's; its VAE is copied.
        replace: whether a network folder that is there may go.

    Raises:
        CodecError: the VAE is not there.
        CheckpointError, GeneratorError: something is there, or it cannot be written.
    """
    try:
        if folder.exists() and os.path.samefile(folder, source):
            if isinstance(codec, VAECodec) and codec.folder.resolve() != (source / VAE).resolve():
                adopt_vae(source, codec)
            write_pipeline_files(source, has_vae=isinstance(codec, VAECodec))
            return folder
        refuse_other_folder(folder)
        if folder.exists() and any(folder.iterdir()) and not replace:
            raise GeneratorError(f"{folder} is there already: --force replaces it")
        _copy(source, folder, codec)
    except OSError as error:
        raise GeneratorError(f"{folder} cannot be written: {error}") from error
    return folder


def _copy(source: Path, folder: Path, codec: Codec) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name in (CONFIG, WEIGHTS, CLASS_NAMES, SAMPLES, CARD):
            if (source / name).is_file():
                shutil.copyfile(source / name, partial / name)
        adopt_vae(partial, codec)
        write_pipeline_files(partial, has_vae=isinstance(codec, VAECodec))
        take_name(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def pipeline_files(*, has_vae: bool) -> dict[str, str]:
    """The three files: path in a generator's folder -> contents."""
    index = {
        "_class_name": PIPELINE_CLASS,
        "_diffusers_version": DIFFUSERS_VERSION,
        NETWORK: [MODULE, NETWORK_CLASS],
        VAE: ["diffusers", "AutoencoderKL"] if has_vae else [None, None],
    }
    return {
        INDEX: json.dumps(index, indent=2) + "\n",
        PIPELINE_FILE: _import_of(PIPELINE_CLASS),
        f"{NETWORK}/{MODULE}.py": _import_of(NETWORK_CLASS),
    }


def write_pipeline_files(folder: Path, *, has_vae: bool) -> None:
    """Writes the three files into a generator's folder.

    Raises:
        OSError: one cannot be written.
    """
    for path, text in pipeline_files(has_vae=has_vae).items():
        (folder / path).parent.mkdir(exist_ok=True)
        with atomic_write(folder / path) as partial:
            partial.write_text(text)


def own_pipeline_files(folder: Path) -> list[str]:
    """Paths of the three files in a folder, if all are there as they are written here."""
    files = pipeline_files(has_vae=(folder / VAE).is_dir())
    try:
        own = all((folder / path).read_bytes() == text.encode() for path, text in files.items())
    except OSError:
        return []
    return list(files) if own else []


def write_pipeline_import(folder: Path) -> None:
    """Writes the file by which diffusers finds the pipeline's class.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_write(folder / PIPELINE_FILE) as partial:
        partial.write_text(_import_of(PIPELINE_CLASS))


def write_network_import(folder: Path) -> None:
    """Writes the file by which diffusers finds the class of a part, into the part's folder.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_write(folder / f"{MODULE}.py") as partial:
        partial.write_text(_import_of(NETWORK_CLASS))


def _import_of(name: str) -> str:
    """A file that imports a class of `MODULE` and does nothing else."""
    return f"from {MODULE} import {name}  # noqa: F401 - pip install sid-scale\n"
