"""Small networks of timm's with random weights, in files as its own are."""

from pathlib import Path

import torch
from safetensors.torch import save_file

VIT, ATTENTION, CONVNEXT = "test_vit.r160_in1k", "test_vit3.r160_in1k", "test_convnext.r160_in1k"
MEAN = "test_vit2.r160_in1k"


def write_encoder(path: Path, name: str, seed: int = 0) -> Path:
    import timm

    torch.manual_seed(seed)
    weights = timm.create_model(name).state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path)
    return path
