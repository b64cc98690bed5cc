"""One DeepSpeed engine for each trained network.

A `ShardedNetwork` is what the rest of the project sees: call it, freeze it, step it. It takes any
module, what its masters begin with, and which parameters are frozen, or read normalised by the
forward pass.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.utils import ZeRORuntimeException
from torch import Tensor, nn

from sid_scale.zero.forward_weights import ForwardWeights
from sid_scale.zero.fragments import forget_gradients, is_replicated, set_masters
from sid_scale.zero.frozen import freeze, set_trained, trained_parameters
from sid_scale.zero.settings import DeepSpeedConfigError, DeepSpeedSettings

# What `deepspeed.initialize` raises for settings; errors of a device are others.
REFUSALS = (
    deepspeed.DeepSpeedConfigError,
    ZeRORuntimeException,
    AssertionError,
    ArithmeticError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
)
SWITCH = "TORCHDYNAMO_DISABLE"  # torch.compile looks at it whenever it is called


@dataclass(frozen=True)
class AdamConfig:
    """Adam as SiD uses it; `eps` None is 1e-8, and 1e-6 in half precision."""

    learning_rate: float
    betas: tuple[float, float] = (0.0, 0.999)
    eps: float | None = None


class ShardedNetwork:
    """A network that is trained, its weights and optimizer sharded as the JSON says."""

    def __init__(
        self,
        network: nn.Module,
        settings: DeepSpeedSettings,
        adam: AdamConfig,
        weights: Mapping[str, Tensor],
        *,
        frozen: Collection[str] = (),
        forward_scales: Mapping[str, float] | None = None,
        forced_norm: bool = False,
        clip_value: float | None = None,
    ):
        """Builds the engine; collective. `network` is consumed.

        Args:
            network: the module; the values of its parameters are of no account, but for frozen
                ones.
            weights: what the masters begin with, by the names of the parameters, of any dtype.
            frozen: names of the parameters that are not trained; they stay as the module has them.
            forward_scales: parameters that the forward pass reads with rows of unit magnitude
                times a constant (forward_weights.py).
            forced_norm: whether the rows of these are kept at unit magnitude where they are
                trained, too.
            clip_value: the largest magnitude of an element of a gradient; None: any.
        """
        network.train()
        freeze(network, frozen)
        self.engine = _initialize(network, settings, adam)
        scaler = self._dynamic_scaler
        if scaler is not None:
            # At its minimum the update is skipped like any other; DeepSpeed would end the run.
            scaler.raise_error_at_min_scale = False
        self.forward_weights = ForwardWeights(
            self.engine,
            forward_scales or {},
            forced=forced_norm,
            clipping=settings.clipping,
            clip_value=clip_value,
        )
        set_masters(self.engine, weights)
        self.forward_weights.normalise_masters()
        self.forward_weights.publish()
        self.grad_norm = float("nan")  # of the last update, before clipping

    @property
    def loss_scale(self) -> float | None:
        """What float16 multiplies the loss by; None in other dtypes."""
        if self.engine.fp16_enabled():
            return float(self.engine.optimizer.loss_scaler.cur_scale)
        return None

    @property
    def loss_scale_can_fall(self) -> bool:
        """Whether a skipped update may be due to a loss scale that the next ones lower.

        A scale of 1 and less makes no gradient overflow.
        """
        scaler = self._dynamic_scaler
        return scaler is not None and scaler.cur_scale > max(1.0, scaler.min_scale)

    @property
    def _dynamic_scaler(self) -> Any:
        scaler = getattr(self.engine.optimizer, "loss_scaler", None)
        return scaler if getattr(scaler, "dynamic", False) else None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A forward pass whose backward pass this network's own `backward` runs."""
        return self.engine(*args, **kwargs)

    @property
    def module(self) -> nn.Module:
        """The network itself, for passes in which it is not the one being trained.

        The engine's own forward would prepare for a backward pass of its own.
        """
        return self.engine.module

    @property
    def is_gathered(self) -> bool:
        """Whether forward passes fetch the weights of each layer from other ranks."""
        return int(self.engine.zero_optimization_stage()) == 3

    @contextmanager
    def frozen(self) -> Iterator[nn.Module]:
        """Inside, gradients flow through the network but not into its weights, and it is in
        evaluation mode."""
        set_trained(self.module, False)
        self.module.eval()
        try:
            yield self.module
        finally:
            set_trained(self.module, True)
            self.module.train()

    def backward(self, loss: Tensor) -> None:
        """Accumulates gradients of `loss`, a mean over this rank's micro-batch.

        A loss that is not finite makes every gradient NaN, so that `step` skips the update.
        """
        self.engine.backward(loss * torch.where(loss.isfinite(), 1.0, float("nan")))

    def step(self) -> bool:
        """Ends a micro-batch; at the last one, steps the optimizer on all ranks or on none.

        -> False if this was an update and it was skipped, because a gradient on some rank was
        not finite (all ranks then agree).
        """
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()
            return True
        finite = True
        if is_replicated(self.engine) and not self._has_finite_gradients():
            self.module.zero_grad(set_to_none=True)  # Adam leaves such weights and state alone
            finite = False
        try:
            self.engine.step()
        finally:
            self.forward_weights.show_masters()
        if not is_replicated(self.engine):
            finite = not self.engine.optimizer.overflow
            forget_gradients(self.engine)
        self.grad_norm = float(self.forward_weights.grad_norm) if finite else float("inf")
        return finite

    @property
    def learning_rate(self) -> float:
        return float(self.engine.basic_optimizer.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        for group in self.engine.basic_optimizer.param_groups:
            group["lr"] = value

    def _has_finite_gradients(self) -> bool:
        """Stage 0 has no overflow check of its own; its gradients are the same on all ranks."""
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        return bool(torch.nn.utils.get_total_norm(gradients).isfinite())


@contextmanager
def _without_dynamo() -> Iterator[None]:
    """Inside, `torch.compile` returns what it is given.

    To prepare Muon's kernels, which nothing here uses, every rank would import all of Inductor,
    hundreds of files, before it starts.
    """
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "1"
    try:
        yield
    finally:
        os.environ.pop(SWITCH)
        if before is not None:
            os.environ[SWITCH] = before


@_without_dynamo()
def _initialize(
    network: nn.Module, settings: DeepSpeedSettings, adam: AdamConfig
) -> deepspeed.DeepSpeedEngine:
    """DeepSpeed's engine.

    Raises:
        DeepSpeedConfigError: DeepSpeed finds its settings at fault.
    """
    if settings.compute_dtype == torch.float16 and not get_accelerator().is_fp16_supported():
        raise DeepSpeedConfigError(
            f"deepspeed: {settings.source}: there is no float16 for training on this device; use "
            "bf16, or float32 (deepspeed=cpu)"
        )
    try:
        engine, *_ = deepspeed.initialize(
            model=network,
            model_parameters=[p for _, p in trained_parameters(network)],
            optimizer=lambda parameters: _adam(parameters, adam, settings),
            config=settings.config,
            dist_init_required=False,
        )
    except REFUSALS as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise DeepSpeedConfigError(
            f"deepspeed: {settings.source}: DeepSpeed cannot work with it: {said}"
        ) from error
    return engine


def _adam(parameters: Any, adam: AdamConfig, settings: DeepSpeedSettings) -> torch.optim.Optimizer:
    eps = adam.eps
    if eps is None:
        eps = 1e-8 if settings.compute_dtype == torch.float32 else 1e-6
    if settings.stage == 0:
        # The forward weights are not what is trained (forward_weights.py).
        parameters = [nn.Parameter(p.detach().float().clone()) for p in parameters]
    # The fused kernel is there for GPUs and CPUs alike. DeepSpeed's own Adam for offloading is no
    # faster on a CPU, and would be compiled on every machine that runs it.
    return torch.optim.Adam(
        parameters, lr=adam.learning_rate, betas=adam.betas, eps=eps, fused=True
    )
