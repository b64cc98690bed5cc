"""The networks that look at images: files that the user has.

- Inception: `inception-2015-12-05.pt`, StyleGAN2-ADA's TorchScript file, or the same network's
  weights as pytorch-fid and torch-fidelity have them. TorchScript is a program and runs as one:
  take it from NVIDIA. EDM and EDM2 fetch the network as a pickle, which only their code can open.
- DINOv2 ViT-L/14: a folder in transformers' form, config.json and model.safetensors.
- encoders: networks of timm's, see encoders.py.

A metric's figures compare with published ones only if these are the published files; `metrics.json`
says the SHA-256 of those that were used.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from sid_scale.errors import SidScaleError, UsageError
from sid_scale.evaluate.encoders import open_encoder
from sid_scale.evaluate.features import (
    DINOV2,
    INCEPTION,
    LATENTS,
    PIXELS,
    PROBABILITIES,
    Extract,
    features_of,
    latent_features,
    pixel_features,
)
from sid_scale.evaluate.inception_files import open_inception
from sid_scale.hashing import sha256_file

INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_WEIGHTS = "inception-2015-12-05-6726825d.pth"
DINOV2_NAME = "facebook/dinov2-large"
DINOV2_WEIGHTS = "model.safetensors"
DINOV2_PIXELS = 224
POSITION_OFFSET = 0.1  # of a patch
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DetectorError(SidScaleError):
    """A detector that cannot be had; the message says which, why and what to do."""


@dataclass(frozen=True)
class DetectorFiles:
    """Where the user keeps the detectors."""

    inception: Path | None = None
    dinov2: Path | None = None
    encoders: Mapping[str, Path] = field(default_factory=dict)  # see encoders.py

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of features whose detectors are given."""
        given = {INCEPTION: self.inception, DINOV2: self.dinov2, **self.encoders}
        return tuple(kind for kind, file in given.items() if file is not None)


def detector_files(options: argparse.Namespace) -> DetectorFiles:
    """Detectors that a command line names.

    Raises:
        UsageError: two files for one encoder.
    """
    encoders: dict[str, Path] = {}
    for name, file in options.encoder:
        if encoders.setdefault(name, file) != file:
            raise UsageError(f"--encoder {name}: two files, {encoders[name]} and {file}")
    return DetectorFiles(options.inception, options.dinov2, encoders)


@dataclass(frozen=True)
class Detectors:
    """What makes features of images, by kind, and the files that it comes from."""

    extract: dict[str, Extract]
    files: dict[str, tuple[str, str]]  # kind -> path, SHA-256; none for what needs no file

    @property
    def hashes(self) -> dict[str, str]:
        """Kind of features -> SHA-256 of the detector."""
        return {kind: digest for kind, (_, digest) in self.files.items()}


def open_detectors(metrics: Sequence[str], files: DetectorFiles, device: torch.device) -> Detectors:
    """Loads the detectors that the metrics need, and no others.

    Raises:
        DetectorError: a file is missing, not named, or holds something else.
    """
    kinds = features_of(metrics)
    extract: dict[str, Extract] = {}
    used: dict[str, tuple[str, str]] = {}
    if of_inception := [m for m in metrics if {INCEPTION, PROBABILITIES} & {*features_of([m])}]:
        path = _existing(files.inception, of_inception, INCEPTION_HELP)
        inception = Inception(path, device)
        digest = sha256_file(path)
        for kind, see in ((INCEPTION, inception.features), (PROBABILITIES, inception.classes)):
            if kind in kinds:
                extract[kind], used[kind] = see, (str(path), digest)
    if of_dinov2 := [m for m in metrics if DINOV2 in features_of([m])]:
        folder = _existing(files.dinov2, of_dinov2, DINOV2_HELP)
        extract[DINOV2] = DinoV2(folder, device)
        used[DINOV2] = (str(folder), sha256_file(folder / DINOV2_WEIGHTS))
    for kind, file in files.encoders.items():
        if kind in kinds:
            extract[kind], used[kind] = (
                open_encoder(kind, file, device),
                (str(file), sha256_file(file)),
            )
    own = {PIXELS: pixel_features, LATENTS: latent_features}
    extract |= {kind: own[kind] for kind in kinds if kind in own}
    return Detectors({kind: extract[kind] for kind in kinds}, used)


INCEPTION_HELP = (
    f"the Inception network of 2015-12-05: {INCEPTION_FILE} (TorchScript; "
    f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{INCEPTION_FILE}), "
    f"or its weights pt_{INCEPTION_WEIGHTS} (https://github.com/mseitzer/pytorch-fid/releases/"
    f"download/fid_weights/pt_{INCEPTION_WEIGHTS}) or weights-{INCEPTION_WEIGHTS}, which "
    "pytorch-fid and torch-fidelity leave in ~/.cache/torch/hub/checkpoints. Name it with "
    "--inception FILE, or in a run's YAML with evaluation.inception"
)
DINOV2_HELP = (
    f"DINOv2 ViT-L/14, a folder with config.json and {DINOV2_WEIGHTS} (`hf download {DINOV2_NAME} "
    "--local-dir FOLDER`). Name it with --dinov2 FOLDER, or in a run's YAML with evaluation.dinov2"
)


def _existing(path: Path | None, metrics: Sequence[str], what: str) -> Path:
    wanted = ", ".join(metrics)
    if path is None:
        raise DetectorError(f"metrics {wanted}: need {what}")
    if not path.exists():
        raise DetectorError(f"{path}: not there. Metrics {wanted} need {what}")
    return path


class Inception:
    """The Inception network, called as EDM and StyleGAN call it."""

    def __init__(self, path: Path, device: torch.device):
        try:
            self._network = open_inception(path, device)
        except (ValueError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise DetectorError(f"{path}: {reason}. What is wanted is {INCEPTION_HELP}") from error
        self._path = path

    def features(self, images: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> (N, 2048) float32, before the last layer."""
        return self._call(images, return_features=True)

    def classes(self, images: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> probabilities (N, 1008) float32; the last layer's bias is left
        out, as in published Inception Scores."""
        return self._call(images, no_output_bias=True)

    def _call(self, images: Tensor, **options: bool) -> Tensor:
        try:
            seen = self._network(images, **options)
        except (RuntimeError, TypeError) as error:
            last = str(error).strip().splitlines()[-1]
            raise DetectorError(
                f"{self._path}: cannot be called with {', '.join(options)}=True ({last}): another "
                f"file than {INCEPTION_FILE}?"
            ) from error
        if seen.shape[:-1] != (len(images),):
            raise DetectorError(f"{self._path}: gives {tuple(seen.shape)}, not (N, features)")
        return seen.float()


class DinoV2:
    """DINOv2 as EDM2 uses it (torch.hub's facebookresearch/dinov2, dinov2_vitl14): bicubic to
    224x224, ImageNet's mean and std, class token."""

    def __init__(self, folder: Path, device: torch.device):
        # transformers takes seconds to import.
        from transformers import Dinov2Model
        from transformers.utils import logging

        logging.disable_progress_bar()
        if not (folder / DINOV2_WEIGHTS).is_file():
            raise DetectorError(
                f"{folder}: no {DINOV2_WEIGHTS} there. What is wanted is {DINOV2_HELP}"
            )
        try:
            opened: Any = Dinov2Model.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
            network, loaded = opened
            if loaded["missing_keys"]:  # transformers would go on with random ones
                raise ValueError(f"no weights {sorted(loaded['missing_keys'])[0]} there")
            embeddings = network.embeddings
            embeddings.position_embeddings = torch.nn.Parameter(
                positions_for_dinov2(
                    embeddings.position_embeddings.detach(), network.config.patch_size
                )
            )
        except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
            raise DetectorError(
                f"{folder}: damaged, or no DINOv2: {error}. What is wanted is {DINOV2_HELP}"
            ) from error
        self._network = network.to(device).eval().requires_grad_(False)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> (N, D) float32, D = 1024 for ViT-L: the class token after the
        last normalisation."""
        seen = self._network(prepare_for_dinov2(images))
        return seen.last_hidden_state[:, 0].float()


def positions_for_dinov2(embeddings: Tensor, patch_size: int) -> Tensor:
    """Position embeddings (1, 1 + M * M, D) of a class token and a grid of patches -> those of the
    grid that a 224x224 image has, (1, 1 + m * m, D).

    The published network (facebookresearch/dinov2, `interpolate_pos_encoding` of ViT-L/14 with its
    `interpolate_offset` 0.1) enlarges by (m + 0.1) / M, not by m / M, and figures are of what that
    gives. transformers resizes to m x m exactly, but leaves alone what has that size already.

    Raises:
        ValueError: the patches make no square.
    """
    of_class, of_patches = embeddings[:, :1], embeddings[:, 1:]
    trained, wanted = math.isqrt(of_patches.shape[1]), DINOV2_PIXELS // patch_size
    grid = of_patches.reshape(1, trained, trained, -1).permute(0, 3, 1, 2)  # (1, D, M, M)
    if trained != wanted:
        scale = (wanted + POSITION_OFFSET) / trained
        grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([of_class, grid.flatten(2).transpose(1, 2)], dim=1)


def prepare_for_dinov2(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) -> float32 (N, 3, 224, 224): resized with antialiasing, normalised."""
    x = images.float() / 255
    x = F.interpolate(x, (DINOV2_PIXELS, DINOV2_PIXELS), mode="bicubic", antialias=True)
    mean, std = (
        torch.tensor(v, device=x.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (x - mean) / std
