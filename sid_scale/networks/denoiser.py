"""What every network offers: D(x; sigma, condition), an estimate of the clean image."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sid_scale.networks import Architecture


class Prediction(NamedTuple):
    """What one forward of a denoiser yields."""

    denoised: Tensor | None  # (N, C, H, W) float32; None if only the encoder ran
    logvar: Tensor | None = None  # (N, 1, 1, 1) float32; None without an uncertainty head
    features: tuple[Tensor, ...] = ()  # those asked for, (N, c, h, w) each


# A denoiser, or an engine around one: the arguments of `Denoiser.forward`.
Denoise = Callable[..., Prediction]


class Denoiser(nn.Module):
    """Base of the families' networks. Subclasses define `forward`."""

    def __init__(self, architecture: Architecture, compute_dtype: torch.dtype = torch.float32):
        super().__init__()
        self.architecture = architecture
        self.compute_dtype = compute_dtype

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        condition: Tensor | None = None,
        *,
        features: tuple[int, ...] = (),
        decode: bool = True,
    ) -> Prediction:
        """Denoises `x`.

        Args:
            x: noisy images or latents, (N, C, H, W).
            sigma: noise levels, any shape of N (or one) elements.
            condition: class indices, int64 (N,); None: no class.
            features: numbers of the encoder blocks whose outputs are wanted, in the compute dtype;
                -1 is the deepest.
            decode: False stops after the encoder; `denoised` is then None.
        """
        raise NotImplementedError

    def normalised_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that forced weight normalisation acts on; none in most families."""
        yield from ()

    def checkpointable(self) -> Iterator[tuple[nn.Module, int]]:
        """Blocks whose activations can be recomputed, each with the resolution that it works at."""
        yield from ()

    def store_weights_in(self, dtype: torch.dtype) -> None:
        """Stores in `dtype` what loses nothing by it, for a network that is not trained."""
        self.to(dtype)
