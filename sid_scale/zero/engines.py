"""One DeepSpeed engine for each trained network.

The DeepSpeed JSON alone decides stage, precision, clipping and offload; the run's config
decides batch sizes. A `ShardedNetwork` is what the rest of the project sees: call it, freeze
it, step it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from sid_scale.errors import SidScaleError
from sid_scale.networks.edm2.layers import normalise_weights_, normalised_parameters
from sid_scale.networks.edm2.network import EDM2, Prediction
from sid_scale.zero.forced_norm import ForcedNorm
from sid_scale.zero.fragments import is_replicated, set_masters

# Keys of the JSON that the run's config decides; both saying something is a contradiction.
BATCH_KEYS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
)


class DeepSpeedConfigError(SidScaleError):
    """A DeepSpeed JSON that this project cannot run; the message says what to change."""


@dataclass(frozen=True)
class AdamConfig:
    """Adam as SiD uses it; `eps` None is 1e-8, and 1e-6 in half precision."""

    learning_rate: float
    betas: tuple[float, float] = (0.0, 0.999)
    eps: float | None = None


@dataclass(frozen=True)
class DeepSpeedSettings:
    """A DeepSpeed JSON, read and completed."""

    config: dict[str, Any]  # what DeepSpeed is given
    stage: int  # ZeRO stage
    compute_dtype: torch.dtype  # of the networks' bodies

    @property
    def offloads_optimizer(self) -> bool:
        offload = self.config.get("zero_optimization", {}).get("offload_optimizer") or {}
        return offload.get("device", "none") != "none"


def read_deepspeed_json(path: str | Path, micro_batch: int, accumulation: int) -> DeepSpeedSettings:
    """The DeepSpeed settings of a run: the user's JSON and the run's batch sizes.

    Raises:
        DeepSpeedConfigError: no such file, not JSON, or settings that cannot work here.
    """
    try:
        config = json.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DeepSpeedConfigError(f"deepspeed: cannot read {path}: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("zero_optimization", {}), dict):
        raise DeepSpeedConfigError(f"deepspeed: {path} is not an object of objects")
    fault = _fault(config)
    if fault:
        raise DeepSpeedConfigError(f"deepspeed: {path}: {fault}")
    stage, dtype = config.get("zero_optimization", {}).get("stage", 0), _compute_dtype(config)
    if stage == 0:
        # Everything is replicated anyway: weights stay float32 and only the network's body
        # computes in bfloat16, which needs no second copy of them.
        config.pop("bf16", None)
    if "bf16" in config:
        config["bf16"]["check_grad_overflow"] = True  # non-finite gradients skip the update
    config.setdefault("gradient_clipping", 0.0)  # DeepSpeed's own default is 1.0
    config["train_micro_batch_size_per_gpu"] = micro_batch
    config["gradient_accumulation_steps"] = accumulation
    config.setdefault("steps_per_print", 1_000_000_000)
    return DeepSpeedSettings(config, stage, dtype)


def _fault(config: dict[str, Any]) -> str | None:
    """What in a DeepSpeed JSON cannot work here, and what to do about it."""
    for key in (*BATCH_KEYS, "optimizer", "scheduler"):
        if key in config:
            return (
                f"sets {key!r}, which the run's YAML decides "
                "(batch_size, micro_batch, learning_rate); remove it"
            )
    zero, dtype = config.get("zero_optimization", {}), _compute_dtype(config)
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        return f"asks for ZeRO stage {stage!r}; 0 to 3 exist"
    if stage == 0 and dtype == torch.float16:
        return "float16 needs loss scaling, which stage 0 lacks; use stage 1 to 3, or bf16"
    if stage < 2 and config.get("data_types", {}).get("grad_accum_dtype") not in (
        None,
        _NAMES[dtype],
    ):
        return (
            "accumulates gradients in another dtype than it computes in; below stage 2 "
            "DeepSpeed's optimizer for that does not skip non-finite updates. Use stage 2 or 3, "
            "or remove data_types.grad_accum_dtype"
        )
    if zero.get("compute_grad_norm") is False:
        return "non-finite gradients are found by their norm; remove compute_grad_norm"
    for offload in ("offload_optimizer", "offload_param"):
        target = zero.get(offload) or {}
        if target.get("device", "none") not in ("none", "cpu") or target.get("ratio", 1) != 1:
            return f"{offload} can go to the CPU, and wholly: device 'cpu', no ratio"
    return None


def _compute_dtype(deepspeed_config: dict[str, Any]) -> torch.dtype:
    if deepspeed_config.get("bf16", {}).get("enabled"):
        return torch.bfloat16
    if deepspeed_config.get("fp16", {}).get("enabled"):
        return torch.float16
    return torch.float32


class ShardedNetwork:
    """A network that is trained, its weights and optimizer sharded as the JSON says."""

    def __init__(
        self,
        network: EDM2,
        settings: DeepSpeedSettings,
        adam: AdamConfig,
        *,
        forced_norm: bool,
    ):
        """Builds the engine; collective. `network` is consumed.

        `forced_norm` keeps every weight's rows normalised, from now on (forced_norm.py).
        """
        network.compute_dtype = settings.compute_dtype
        network.train()
        names = [name for name, _ in normalised_parameters(network)]
        if forced_norm:
            normalise_weights_(network)
        self.config = network.config
        exact = {name: p.detach().clone() for name, p in network.named_parameters()}
        self.engine, *_ = deepspeed.initialize(
            model=network,
            model_parameters=list(network.parameters()),
            optimizer=lambda parameters: _adam(parameters, adam, settings),
            config=settings.config,
            dist_init_required=False,
        )
        set_masters(self.engine, exact)
        if forced_norm:
            ForcedNorm(self.engine, names)
        self.grad_norm = float("nan")  # of the last update, before clipping

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor, **options: Any) -> Prediction:
        """A forward pass whose backward pass this network's own `backward` runs."""
        return self.engine(x, sigma, labels, **options)

    @property
    def module(self) -> nn.Module:
        """The network itself, for passes in which it is not the one being trained.

        The engine's own forward would prepare for a backward pass of its own.
        """
        return self.engine.module

    @contextmanager
    def frozen(self) -> Iterator[nn.Module]:
        """Inside, gradients flow through the network but not into its weights."""
        self.module.requires_grad_(False)
        try:
            yield self.module
        finally:
            self.module.requires_grad_(True)

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
        finite = not is_replicated(self.engine) or self._drop_non_finite_gradients()
        self.engine.step()
        if not is_replicated(self.engine):
            self.grad_norm = float(self.engine.get_global_grad_norm())
            finite = not self.engine.optimizer.overflow
        return finite

    @property
    def learning_rate(self) -> float:
        return float(self.engine.basic_optimizer.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        for group in self.engine.basic_optimizer.param_groups:
            group["lr"] = value

    def _drop_non_finite_gradients(self) -> bool:
        """Stage 0 has no overflow check of its own; its gradients are the same on all ranks."""
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.grad_norm = float(norm)
        if not torch.isfinite(norm):
            for p in self.module.parameters():
                p.grad = None  # Adam leaves weights and state of such parameters alone
        return bool(torch.isfinite(norm))


_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def _adam(parameters: Any, adam: AdamConfig, settings: DeepSpeedSettings) -> torch.optim.Optimizer:
    eps = adam.eps
    if eps is None:
        eps = 1e-8 if settings.compute_dtype == torch.float32 else 1e-6
    if settings.offloads_optimizer:
        from deepspeed.ops.adam import DeepSpeedCPUAdam  # compiles itself when first used

        return DeepSpeedCPUAdam(
            parameters, lr=adam.learning_rate, betas=adam.betas, eps=eps, adamw_mode=False
        )
    fused = torch.cuda.is_available()
    return torch.optim.Adam(
        parameters, lr=adam.learning_rate, betas=adam.betas, eps=eps, fused=fused
    )
