"""EDM's pixel networks: preconditioning around a U-Net.

Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
(arXiv 2206.00364), Table 1. The body of the U-Net runs in `compute_dtype`; preconditioning and the
embedding run in float32.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sid_scale.networks.denoiser import Denoiser, Prediction, named_blocks, preconditioning
from sid_scale.networks.edm.architecture import EDMArchitecture
from sid_scale.networks.edm.layers import FourierEmbedding, Linear
from sid_scale.networks.edm.unet import UNETS, Block, UNet

_BLOCKS = r"model\.(enc|dec)\.\d+x\d+_(block\d+|up|down|in\d+)"


class EDM(Denoiser):
    """The preconditioned denoiser D(x; sigma, class, augmentation) (Eq. 7 and Table 1)."""

    # Those that published runs of GDD-I (arXiv 2405.20750) could freeze.
    weight_groups: ClassVar[Mapping[str, str]] = {
        "convolutions": rf"{_BLOCKS}\.(conv0|conv1|proj)\.(weight|bias)",
        "qkv": rf"{_BLOCKS}\.qkv\.(weight|bias)",
        "skip": rf"{_BLOCKS}\.skip\.(weight|bias)",
    }

    architecture: EDMArchitecture

    def __init__(self, architecture: EDMArchitecture, compute_dtype: torch.dtype = torch.float32):
        super().__init__(architecture, compute_dtype)
        self.model: UNet = UNETS[architecture.model_type](architecture)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        condition: Tensor | None = None,
        *,
        features: tuple[int, ...] = (),
        decoded: int | None = None,
        augment_labels: Tensor | None = None,
    ) -> Prediction:
        """Denoises `x`; see `Denoiser`. `augment_labels`: (N, augment_dim), or None."""
        x = x.float()
        architecture = self.architecture
        c = preconditioning(sigma, len(x), architecture.sigma_data, architecture.sigma_min)
        emb = self.model.embed(c.c_noise, self._one_hot(x, condition), augment_labels)
        skips = self.model.encode((c.c_in * x).to(self.compute_dtype), emb)
        wanted = tuple(skips[i] for i in features)
        if decoded == 0:
            return Prediction(None, None, wanted)
        raw = self.model.decode([skip[:decoded] for skip in skips], emb[:decoded]).float()
        return Prediction((c.c_skip * x)[:decoded] + c.c_out[:decoded] * raw, None, wanted)

    def checkpointable(self) -> Iterator[tuple[nn.Module, int]]:
        """Every residual block and the resolution in its name."""
        return named_blocks((self.model.enc, self.model.dec), Block)

    def load_weights(self, state: Mapping[str, Tensor], device: torch.device | str) -> None:
        """Layers of the U-Net's body in the compute dtype, those of the embedding in float32."""
        exact = (Linear, FourierEmbedding)
        taken = {}
        for name, tensor in state.items():
            layer = self.get_submodule(name.rpartition(".")[0])
            dtype = torch.float32 if isinstance(layer, exact) else self.compute_dtype
            taken[name] = tensor.to(device, dtype, copy=True)
        self.load_state_dict(taken, assign=True)

    def _one_hot(self, x: Tensor, condition: Tensor | None) -> Tensor | None:
        """(N, label_dim) float32; no class is a row of zeros. None for a network without labels."""
        classes = self.architecture.label_dim
        if not classes:
            return None
        if condition is None:
            return x.new_zeros(len(x), classes)
        return F.one_hot(condition, classes).float()
