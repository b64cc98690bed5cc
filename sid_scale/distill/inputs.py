"""The files that a run begins with, compared with each other before anything is built."""

from dataclasses import replace

from sid_scale.codecs import Codec, CodecError, IdentityCodec, differing_key, open_codec
from sid_scale.config.parse import ConfigError
from sid_scale.config.run import RunConfig
from sid_scale.data.remote import RetryPolicy
from sid_scale.data.shards import ShardIndex, read_index
from sid_scale.methods import Method, Role
from sid_scale.networks import Architecture
from sid_scale.networks.folder import CheckpointError, NetworkFolder, load_network
from sid_scale.networks.guides import GuideError, check_guide


def load_start(setting: str, folder: str) -> NetworkFolder:
    """The network folder that a setting names.

    Raises:
        CheckpointError: it cannot be read; says which setting names it.
    """
    try:
        return load_network(folder)
    except CheckpointError as error:
        raise CheckpointError(f"{setting}: {error}") from error


def load_guides(method: Method, teacher: NetworkFolder, codec: Codec) -> dict[str, NetworkFolder]:
    """The networks that guide the teacher, by name.

    Args:
        codec: the teacher's.

    Raises:
        SidScaleError: one cannot be read, or is of other images than the teacher.
    """
    guides = {}
    for name, path in method.guides().items():
        guide = load_start(f"objective.{name}", str(path))
        if "init_sigma" in guide.provenance:
            raise GuideError(f"objective.{name}: {path} holds a generator, which guides nothing")
        its_codec = open_codec(guide.codec, beside=path)
        check_guide(teacher.architecture, codec, guide.architecture, its_codec, path)
        guides[name] = guide
    return guides


def check_start(
    config: RunConfig, generator: Role, teacher: NetworkFolder, start: NetworkFolder
) -> None:
    """Compares the network that the generator starts from with the teacher.

    Raises:
        CheckpointError: it is another network, or was made at another noise level.
    """

    def wanted(folder: NetworkFolder) -> Architecture:
        return replace(generator.architecture(folder.architecture), dropout=0.0)

    if wanted(teacher) != wanted(start):
        raise CheckpointError(
            f"generator_init {config.generator_init} has another architecture than teacher "
            f"{config.teacher}: {wanted(start)} and {wanted(teacher)}"
        )
    for key, value in {"init_sigma": config.init_sigma, "steps": config.steps}.items():
        if start is not teacher and start.provenance.get(key, value) != value:
            raise CheckpointError(
                f"generator_init {config.generator_init} was made with {key} "
                f"{start.provenance[key]}, this run has {value}: make them the same"
            )


def check_data(config: RunConfig, teacher: NetworkFolder, codec: Codec) -> ShardIndex | None:
    """Compares the shards, if there are any, with the teacher.

    Raises:
        SidScaleError: they cannot be read, or are of other images, classes or latents.
    """
    architecture = teacher.architecture
    expected = codec.stored_shape(architecture.sample_shape)
    if config.data is None:
        return None
    retry = RetryPolicy(config.stream.retries, config.stream.backoff_seconds)
    index = read_index(config.data, retry, config.stream.timeout_seconds)
    ours, theirs = codec.describe(), index.codec
    classes = architecture.label_dim or index.num_classes  # an unconditional teacher takes any
    held = index.sample_shape, index.num_classes
    if held != (expected, classes) or index.dtype not in codec.stored_dtypes:
        of_classes = f" of {architecture.label_dim} classes" if architecture.label_dim else ""
        raise CheckpointError(
            f"data {config.data} holds {index}; teacher {config.teacher} wants "
            f"{' or '.join(codec.stored_dtypes)} {expected}{of_classes}, codec {ours['kind']}: "
            f"make shards for it (`sid-scale shards` or `encode` with --codec {config.teacher})"
        )
    if config.stream.xflip and not isinstance(codec, IdentityCodec):
        raise ConfigError(
            "stream.xflip mirrors pixels, and the teacher's images are latents; encode them with "
            "`sid-scale encode --flip`"
        )
    if key := differing_key(ours, theirs):
        raise CodecError(
            f"data {config.data} was encoded with codec {key} {theirs.get(key)}; teacher "
            f"{config.teacher} expects {ours.get(key)}: encode the data again for it"
        )
    return index
