"""A try on one image before thousands: whatever cannot work fails now."""

from collections.abc import Mapping

import torch

from sid_scale.codecs import CodecError, IdentityCodec
from sid_scale.evaluate.detectors import Detectors
from sid_scale.evaluate.engine import extract_features
from sid_scale.evaluate.features import need_images
from sid_scale.evaluate.references.files import Reference, check_references
from sid_scale.evaluate.samplers import Sampler
from sid_scale.generators.generator import RGB


def smoke_test(
    sampler: Sampler, detectors: Detectors, references: Mapping[str, Reference]
) -> dict[str, int]:
    """Decodes one latent of zeros, if decoded images are wanted, and shows it to all detectors.

    Returns:
        Kind of features -> their number D.

    Raises:
        CodecError: the VAE cannot be found, is damaged, or the network names none.
        DetectorError: a detector cannot be called.
        ReferenceFileError: a reference is of other images or other detectors.
    """
    shape = sampler.architecture.sample_shape
    latents = torch.zeros(1, *shape, device=sampler.device)
    images = None
    if need_images(detectors.extract):
        if isinstance(sampler.codec, IdentityCodec) and shape[0] != RGB:
            raise CodecError(
                f"the network makes {shape[0]} channels, and its folder names no VAE that turns "
                "them into images"
            )
        sampler.codec.load(sampler.device)
        images = sampler.codec.decode(latents)
    features = extract_features(detectors.extract, images, latents)
    sizes = {kind: values.shape[1] for kind, values in features.items()}
    resolution = None if images is None else images.shape[-1]
    check_references(references, sizes, resolution, detectors.hashes)
    return sizes
