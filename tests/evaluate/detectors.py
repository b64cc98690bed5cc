"""Detectors in the published files' formats, but small."""

from pathlib import Path

import torch
from torch import Tensor, nn

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
