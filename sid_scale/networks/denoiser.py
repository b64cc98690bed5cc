"""What every network offers: D(x; sigma, condition), an estimate of the clean image."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from sid_scale.networks import Architecture


class Prediction(NamedTuple):
    """What one forward of a denoiser yields."""

    denoised: Tensor | None  # (decoded, C, H, W) float32; None if only the encoder ran
    logvar: Tensor | None = None  # (N, 1, 1, 1) float32; None without an uncertainty head
    features: tuple[Tensor, ...] = ()  # those asked for, (N, c, h, w) each


# A denoiser, or an engine around one: the arguments of `Denoiser.forward`.
Denoise = Callable[..., Prediction]


class Denoiser(nn.Module):
    """Base of the families' networks. Subclasses define `forward`."""

    # Name of a group of weights -> the regular expression that the names of its parameters match.
    weight_groups: ClassVar[Mapping[str, str]] = {}

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
        decoded: int | None = None,
    ) -> Prediction:
        """Denoises `x`.

        Networks whose architecture has an `augment_dim` also take `augment_labels`, (N,
        augment_dim) float32: how `x` was augmented; None: it was not.

        Args:
            x: noisy images or latents, (N, C, H, W).
            sigma: noise levels, any shape of N (or one) elements.
            condition: class indices, int64 (N,); None: no class.
            features: numbers of the encoder blocks whose outputs are wanted, in the compute dtype;
                -1 is the deepest.
            decoded: how many samples, from the first, are denoised; the others go through the
                encoder alone. None: all; 0: `denoised` is then None.
        """
        raise NotImplementedError

    def forward_scales(self) -> dict[str, float]:
        """Parameters that the forward pass reads with rows of unit magnitude times a scale.

        Name -> scale. In files, and where they are trained, their rows have any magnitude. Forced
        weight normalisation acts on these. None in most families.
        """
        return {}

    def forward_form(self, name: str, weight: Tensor) -> Tensor:
        """A parameter as the forward pass reads it, float32, of the one that files hold."""
        return weight.float()

    def checkpointable(self) -> Iterator[tuple[nn.Module, int]]:
        """Blocks whose activations can be recomputed, each with the resolution that it works at."""
        yield from ()

    def load_weights(self, state: Mapping[str, Tensor], device: torch.device | str) -> None:
        """Takes parameters and buffers as files hold them, for a network that is not trained.

        Each is put in the form that the forward pass reads, on `device`, and in the compute dtype
        if nothing is lost by that. The network may be on the meta device before.
        """
        copies = {name: t.to(device, torch.float32, copy=True) for name, t in state.items()}
        self.load_state_dict(copies, assign=True)


class Preconditioning(NamedTuple):
    """D(x) = c_skip x + c_out F(c_in x, c_noise) (arXiv 2206.00364, Eq. 7 and Table 1)."""

    c_skip: Tensor  # (N, 1, 1, 1), as c_out and c_in; all float32
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor  # (N,)


def preconditioning(
    sigma: Tensor, samples: int, sigma_data: float, sigma_min: float = 0.0
) -> Preconditioning:
    """The coefficients of `samples` images at noise levels of any shape of as many elements, or of
    one.

    With a `sigma_min` D(x; sigma_min) is x (arXiv 2303.01469, App. C).
    """
    sigma = sigma.float().reshape(-1).expand(samples)
    s = sigma[:, None, None, None]
    c_in = 1 / (s**2 + sigma_data**2).sqrt()
    above = s - sigma_min
    c_skip = sigma_data**2 / (above**2 + sigma_data**2)
    return Preconditioning(c_skip, above * sigma_data * c_in, c_in, sigma.log() / 4)


class Float32Buffers(nn.Module):
    """A module whose buffers stay float32 when the network around it is cast.

    A frequency or phase that is rounded is another feature.
    """

    def _apply(self, fn, recurse=True):
        exact = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in self._buffers.items():
            before = exact[name]
            if buffer is not None and before is not None and buffer.dtype != before.dtype:
                self._buffers[name] = before.to(buffer.device)
        return self


def named_blocks(parts: Iterable[nn.ModuleDict], kind: type) -> Iterator[tuple[nn.Module, int]]:
    """Modules of that kind, each with the resolution that its name begins with (`16x16_block0`)."""
    for part in parts:
        for name, block in part.items():
            if isinstance(block, kind):
                yield block, int(name.partition("x")[0])


def blocks_of(network: nn.Module) -> list[tuple[nn.Module, int]]:
    """What `checkpointable` of a network yields; a network that is no `Denoiser` has no blocks."""
    return list(network.checkpointable()) if isinstance(network, Denoiser) else []
