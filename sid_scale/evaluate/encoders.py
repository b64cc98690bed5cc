"""Encoders that the user gives: any image network of timm's, with weights from a safetensors file.

    --encoder vit_large_patch16_224.mae=mae.safetensors
    --encoder vit_large_patch14_dinov2.lvd142m@256=dinov2.safetensors

The name is timm's, and the size behind `@` the side of the images that the network sees; without it
timm's own for these weights. An image is resized to that (bicubic, with antialiasing), divided by
255 and normalised by the mean and standard deviation that timm says for the weights. Its features
are, in float32, what the network gives before its head: the class token after the last
normalisation; without one what the attention that pools the tokens gives, or the mean of those of
the image; of a convolutional network the mean over all places. The code of FDr's paper (arXiv
2604.28190) sees images so, too, but in bfloat16.
"""

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sid_scale.errors import SidScaleError
from sid_scale.networks.features.timm_networks import create
from sid_scale.networks.features.weights import load_weights

NAME = re.compile(r"(?P<model>[A-Za-z0-9_.-]+?)(@(?P<size>[1-9][0-9]{1,3}))?")


class EncoderError(SidScaleError):
    """An encoder that cannot be had; the message says which, why and what to do."""


class Encoder:
    """One encoder: uint8 images (N, 3, H, W) -> features (N, D) float32."""

    def __init__(self, network: nn.Module, size: int, mean: Tensor, std: Tensor):
        """`size` in pixels; `mean` and `std`, (3, 1, 1), of images in [0, 1]."""
        self.size, self._mean, self._std = size, mean, std
        self._network: Any = network

    def __call__(self, images: Tensor) -> Tensor:
        return self._pooled(self._network.forward_features(self.prepare(images))).float()

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> what the network sees, float32 (N, 3, size, size)."""
        x = images.float() / 255
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True)
        return (x - self._mean) / self._std

    def _pooled(self, seen: Any) -> Tensor:
        """(N, D) of maps (N, D, h, w) or (N, h, w, D), or of tokens (N, T, D).

        Raises:
            ValueError: it is neither.
        """
        network = self._network
        if not isinstance(seen, Tensor) or seen.ndim not in (3, 4):
            raise ValueError("it gives no one map or row of tokens before its head")
        if seen.ndim == 4:
            places = (2, 3) if seen.shape[1] == network.num_features else (1, 2)
            return seen.mean(dim=places)
        if getattr(network, "cls_token", None) is not None:
            return seen[:, 0]
        if getattr(network, "attn_pool", None) is not None:
            pooled: Tensor = network.pool(seen)
            return pooled
        return seen[:, getattr(network, "num_prefix_tokens", 0) :].mean(dim=1)  # without registers


def open_encoder(name: str, file: Path, device: torch.device) -> Encoder:
    """The encoder of a name (see above), with the weights of a file.

    Raises:
        EncoderError: timm is not installed, or has no such network; the file is missing, damaged
            or another network's; the network cannot look at images of this size.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise EncoderError(f"encoder {name!r:.80}: expected a name of timm's, or NAME@SIZE")
    try:
        network = _create(match["model"], any_size=match["size"] is not None)
        load_weights(network, file)
        settings = network.pretrained_cfg
        encoder = Encoder(
            network.to(device).eval().requires_grad_(False),
            int(match["size"] or settings["input_size"][-1]),
            *(torch.tensor(settings[key], device=device).view(3, 1, 1) for key in ("mean", "std")),
        )
        encoder(torch.zeros(1, 3, 8, 8, dtype=torch.uint8, device=device))
    except (ImportError, OSError, ValueError, RuntimeError, TypeError, AssertionError) as error:
        reason = getattr(error, "strerror", None) or error or "it cannot look at such images"
        raise EncoderError(
            f"encoder {name}, {file}: {reason}. It is made of the weights of timm's network: "
            f"`hf download timm/{match['model']} model.safetensors --local-dir FOLDER`"
        ) from error
    return encoder


def _create(model: str, *, any_size: bool) -> Any:
    """timm's network without its head, whose weights a file may hold or not."""
    try:
        settings = {"dynamic_img_size": True, "dynamic_img_pad": True} if any_size else {}
        network = create(model, **settings)
    except TypeError:  # a convolutional network, which takes any size as it is
        network = create(model)
    heads = network.pretrained_cfg["classifier"]
    for head in (heads,) if isinstance(heads, str) else heads or ():
        setattr(network, head.partition(".")[0], nn.Identity())
    return network
