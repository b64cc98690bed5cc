"""Detectors in the published files' formats: small ones, and Inception with random weights."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sid_scale.evaluate.inception import InceptionLayers, weight_shapes

FEATURES, CLASSES = 24, 7


class TinyInception(nn.Module):
    """Called as NVIDIA's file is: features, or probabilities with the last bias or without."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, FEATURES, 3, stride=2, padding=1)
        self.output = nn.Linear(FEATURES, CLASSES)

    def forward(
        self,
        img: Tensor,
        return_features: bool = False,
        use_fp16: bool = False,
        no_output_bias: bool = False,
    ) -> Tensor:
        x = torch.relu(self.body(img.to(torch.float32) / 127.5 - 1))
        features = x.mean(dim=[2, 3])
        if return_features:
            return features
        if no_output_bias:
            logits = torch.nn.functional.linear(features, self.output.weight)
        else:
            logits = self.output(features)
        return torch.softmax(20.0 * logits, dim=1)


def write_inception(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    torch.jit.script(TinyInception()).save(str(path))
    return path


def write_dinov2(folder: Path, seed: int = 0, grid: int = 4) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(seed)
    config = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=14 * grid,
        patch_size=14,
    )
    Dinov2Model(config).save_pretrained(folder)
    return folder


def random_inception(seed: int = 0) -> dict[str, Tensor]:
    """Weights of the whole network with which values neither vanish nor grow on their way."""
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith(("running_var", "bn.weight")):
            return rng.uniform(0.7, 1.3, shape)
        if name.endswith("conv.weight"):
            return rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
        return rng.normal(size=shape) * (0.05 if name == "fc.weight" else 0.1)

    drawn = {name: draw(name, shape) for name, shape in weight_shapes().items()}
    return {name: torch.from_numpy(value.astype(np.float32)) for name, value in drawn.items()}


class ScriptedInception(nn.Module):
    """What NVIDIA's file does around its layers; the resize is a sampling of the plane."""

    def __init__(self, layers: torch.jit.ScriptFunction, weights: Mapping[str, Tensor]):
        super().__init__()
        self.layers = layers
        self.register_buffer("weight", weights["fc.weight"])
        self.register_buffer("bias", weights["fc.bias"])

    def forward(
        self,
        img: Tensor,
        return_features: bool = False,
        use_fp16: bool = False,
        no_output_bias: bool = False,
    ) -> Tensor:
        count, channels, height, width = img.shape
        shift = torch.tensor([1 / width - 1 / 299, 1 / height - 1 / 299])
        plane = torch.cat([torch.eye(2), shift[:, None]], dim=1).repeat(count, 1, 1)
        places = F.affine_grid(plane, [count, channels, 299, 299], align_corners=False)
        x = F.grid_sample(img.float(), places, padding_mode="border", align_corners=False)
        features = self.layers((x - 128) / 128)
        if return_features:
            return features
        logits = F.linear(features, self.weight)
        return torch.softmax(logits if no_output_bias else logits + self.bias, dim=1)


def write_scripted_inception(path: Path, weights: Mapping[str, Tensor]) -> Path:
    layers = torch.jit.trace(InceptionLayers(weights).features, torch.zeros(1, 3, 299, 299))
    torch.jit.script(ScriptedInception(layers, weights)).save(str(path))
    return path
