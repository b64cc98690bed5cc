"""What a network folder holds when it is a generator's, ready to be passed on.

    model.safetensors  config.json    the network, and in `provenance` how it was made
    vae/                              the VAE that decodes its latents
    classes.txt                       names of its classes, if they have any
    samples.png  README.md            the sample grid and the model card (`card.py`)
    model_index.json ...              for diffusers (`diffusers_folder.py`)

The first two make a generator. The others are copied or drawn beside them.
"""

import json
import os
import shutil
from pathlib import Path

from torch import Tensor

from sid_scale.atomic import atomic_write
from sid_scale.class_lists import CLASS_NAMES
from sid_scale.codecs import VAE_CONFIG, VAE_WEIGHTS, Codec, CodecError, VAECodec, open_codec
from sid_scale.errors import SidScaleError
from sid_scale.hub.folders import local_folder
from sid_scale.hub.names import is_name
from sid_scale.image_grid import image_grid, write_png
from sid_scale.measurements import is_number
from sid_scale.networks.folder import CONFIG, NetworkFolder

VAE = "vae"
SAMPLES = "samples.png"
CARD = "README.md"
POST_HOC_EMA = "post_hoc_ema"  # in provenance: the average was reconstructed, and of what


class GeneratorError(SidScaleError):
    """Something that a generator cannot make or is not; the message says what and why."""


def codec_of(
    saved: NetworkFolder,
    folder: str | os.PathLike[str],
    vae: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Codec:
    """The codec of a network folder.

    Args:
        saved: what is in the folder.
        folder: the folder.
        vae: folder of the VAE, or its name on the hub; by default `vae/` in `folder`, or else what
            `config.json` names: a folder, or a VAE on the hub.
        cache_dir: where to fetch a VAE to; by default the hub's cache.

    Raises:
        HubError: `vae` is neither there nor on the hub.
        CodecError: the description in the folder is unusable, or `vae` holds no VAE.
    """
    description = dict(saved.codec)
    if vae is not None:
        if description.get("kind") != "vae":
            raise CodecError(f"{folder}: makes images without a VAE, so {vae} is of no use")
        description["vae"] = os.path.abspath(local_folder(vae, cache_dir=cache_dir))
        open_codec(description).check()
    elif (Path(folder) / VAE).is_dir():
        description["vae"] = VAE
    codec = open_codec(description, beside=Path(folder))
    if isinstance(codec, VAECodec) and not (codec.folder.is_dir() or is_name(codec.folder)):
        codec.folder = Path(folder) / VAE  # where it is missed, and where to put it
    if isinstance(codec, VAECodec):
        codec.cache_dir = cache_dir
    channels = saved.architecture.sample_shape[0]
    if isinstance(codec, VAECodec) and not len(codec.scale) == len(codec.bias) == channels:
        raise CodecError(
            f"{folder}: its latents have {channels} channels, its codec {len(codec.scale)} values "
            f"of scale and {len(codec.bias)} of bias"
        )
    return codec


def trained_for(saved: NetworkFolder, folder: str | os.PathLike[str]) -> tuple[float, int]:
    """(init_sigma, steps) that a generator folder says it was trained for.

    Raises:
        GeneratorError: it says nothing of the kind, as a teacher's folder.
    """
    where = f"{Path(folder) / CONFIG}"
    kind = saved.provenance.get("kind", "generator")
    if kind != "generator":
        raise GeneratorError(f"{where}: a {kind}, not a generator")
    if "init_sigma" not in saved.provenance:
        raise GeneratorError(
            f"{where}: no generator: provenance names no init_sigma, the noise level that it "
            "starts from. (A teacher needs a sampler: distil it, or measure it with "
            "`sid-scale evaluate teacher`.)"
        )
    init_sigma, steps = saved.provenance["init_sigma"], saved.provenance.get("steps", 1)
    if not is_number(init_sigma) or init_sigma <= 0:
        raise GeneratorError(
            f"{where}: provenance.init_sigma is {init_sigma!r:.40}, not a noise level"
        )
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise GeneratorError(f"{where}: provenance.steps is {steps!r}, not a number of steps")
    return float(init_sigma), steps


def adopt_vae(folder: Path, codec: Codec) -> None:
    """Copies the VAE into a generator folder as `vae/`, if its codec has one, and says so in
    `config.json`.

    Raises:
        CodecError: the VAE is not there.
        OSError: it cannot be copied.
    """
    if not isinstance(codec, VAECodec):
        return
    source = codec.located()
    partial = folder / f".{VAE}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name in (VAE_CONFIG, VAE_WEIGHTS):
        shutil.copyfile(source / name, partial / name)
    shutil.rmtree(folder / VAE, ignore_errors=True)
    os.replace(partial, folder / VAE)
    config = json.loads((folder / CONFIG).read_text())
    config["codec"]["vae"] = VAE
    with atomic_write(folder / CONFIG) as path:
        path.write_text(json.dumps(config, indent=2) + "\n")


def classes_in_turn(count: int, label_dim: int) -> list[int] | None:
    """`count` classes for a grid: spread over all if there are more, again and again if fewer.

    None if the network knows no classes (`label_dim` 0).
    """
    if label_dim == 0:
        return None
    return [i * max(1, label_dim // count) % label_dim for i in range(count)]


def adopt_class_names(folder: Path, teacher: Path) -> None:
    """Copies the teacher's `classes.txt` into a generator folder, if there is one.

    Raises:
        OSError: it cannot be copied.
    """
    if (teacher / CLASS_NAMES).is_file():
        shutil.copyfile(teacher / CLASS_NAMES, folder / CLASS_NAMES)


def write_samples(folder: Path, images: Tensor) -> Path:
    """Writes uint8 images (N, 3, H, W) as `samples.png`.

    Raises:
        OSError: it cannot be written.
    """
    write_png(folder / SAMPLES, image_grid(images))
    return folder / SAMPLES
