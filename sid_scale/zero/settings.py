"""The DeepSpeed JSON of a run, read and checked. Imports DeepSpeed when it reads one.

The JSON alone decides stage, precision, clipping and offload; the run's config decides batch sizes
and the optimizer.
"""

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sid_scale.config.parse import nearest
from sid_scale.config.run import RunConfig
from sid_scale.errors import SidScaleError
from sid_scale.zero.keys import REFUSED, fault_in_keys

FLOAT32 = torch.float32.itemsize  # bytes
ADAM = 2 * FLOAT32  # two moments
ONE_GROUP = 10**15  # elements: all of a network is stepped at once, after one norm
SHIPPED = Path(__file__).parents[1] / "ds_configs"


class DeepSpeedConfigError(SidScaleError):
    """A DeepSpeed JSON that this project cannot run; the message says what to change."""

    exit_status = 2


_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
ITEMSIZE = {name: dtype.itemsize for dtype, name in _NAMES.items()}  # bytes


@dataclass(frozen=True)
class DeepSpeedSettings:
    """A DeepSpeed JSON, read and completed."""

    config: dict[str, Any]  # what DeepSpeed is given
    stage: int  # ZeRO stage
    compute_dtype: torch.dtype  # of the networks' bodies
    clipping: float  # largest norm of a gradient; 0: any
    source: Path  # the file, for messages

    @property
    def offloads_optimizer(self) -> bool:
        offload = self.config.get("zero_optimization", {}).get("offload_optimizer") or {}
        return offload.get("device", "none") != "none"

    @property
    def weight_bytes(self) -> int:
        """Of a parameter as the forward pass reads it."""
        return self.compute_dtype.itemsize if self.stage else FLOAT32

    @property
    def gradient_bytes(self) -> int:
        """Of a parameter's gradient while it is summed over micro-batches."""
        name: str = self.config.get("data_types", {}).get("grad_accum_dtype", "")
        return ITEMSIZE.get(name, self.weight_bytes) if self.stage else FLOAT32

    @property
    def sums_on_gpu(self) -> bool:
        """Whether gradients are summed over micro-batches on the GPU. With an offloaded optimizer
        stage 2 does so if their sum is float32 and the networks are not."""
        if self.stage < 2 or not self.offloads_optimizer:
            return True
        return self.stage == 2 and self.gradient_bytes > self.weight_bytes

    def training_bytes(self, ranks: int, *, averages: int) -> dict[str, float]:
        """What each rank keeps for a parameter that is trained, beside its forward weight: master,
        Adam's moments, gradient and its `averages`. By place: "GPU", "host"."""
        state = (FLOAT32 + ADAM + averages * FLOAT32) / (ranks if self.stage else 1)
        gradient = self.gradient_bytes / (ranks if self.stage >= 2 else 1)
        found = {"GPU": 0.0, "host": 0.0}
        found["host" if self.offloads_optimizer else "GPU"] += state
        found["GPU" if self.sums_on_gpu else "host"] += gradient
        return found


def exact(settings: DeepSpeedSettings) -> DeepSpeedSettings:
    """The settings of a network that computes in float32 and is whole on every rank.

    A second derivative reads weights that ZeRO 3 has released by then: stage 2 takes its place.
    """
    config = copy.deepcopy(settings.config)
    for key in ("bf16", "fp16", "data_types"):
        config.pop(key, None)
    config["communication_data_type"] = "fp32"
    if settings.stage == 3:
        config["zero_optimization"]["stage"] = 2
        config["zero_optimization"].pop("offload_param", None)
    stage = min(settings.stage, 2)
    return replace(settings, config=config, stage=stage, compute_dtype=torch.float32)


def find_deepspeed_json(source: str | Path) -> Path:
    """The file of that path, or the one of that name (`zero2`) which comes with the package.

    Raises:
        DeepSpeedConfigError: neither; names the nearest.
    """
    for path in (Path(source), SHIPPED / f"{source}.json"):
        if path.is_file():
            return path
    hint = nearest(str(source), sorted(path.stem for path in SHIPPED.glob("*.json")))
    raise DeepSpeedConfigError(
        f"deepspeed: {source} is neither a file nor a name of one that comes with the package{hint}"
    )


def settings_of(config: RunConfig, accumulation: int) -> DeepSpeedSettings:
    """The DeepSpeed settings of a run.

    Raises:
        DeepSpeedConfigError: see `read_deepspeed_json`, or the run's YAML contradicts them.
    """
    settings = read_deepspeed_json(config.deepspeed, config.micro_batch, accumulation)
    if config.compile_blocks and settings.stage == 3:
        raise DeepSpeedConfigError(
            f"compile_blocks: deepspeed {settings.source} asks for ZeRO stage 3, whose hooks "
            "Dynamo would trace and compile again for each parameter; use stage 0 to 2, or "
            "compile_blocks: false"
        )
    return settings


def read_deepspeed_json(path: str | Path, micro_batch: int, accumulation: int) -> DeepSpeedSettings:
    """The DeepSpeed settings of a run: the user's JSON and the run's batch sizes.

    Raises:
        DeepSpeedConfigError: no such file, not JSON, or settings that cannot work here.
    """
    path = find_deepspeed_json(path)
    try:
        config = json.loads(
            path.read_text("utf-8-sig"), object_pairs_hook=_each_key_once, parse_constant=_no_number
        )
    except (OSError, ValueError, RecursionError) as error:
        raise DeepSpeedConfigError(f"deepspeed: cannot read {path}: {error}") from error
    if not isinstance(config, dict):
        raise DeepSpeedConfigError(f"deepspeed: {path} is not an object")
    fault = fault_in_keys(config) or _fault(config)
    if fault:
        raise DeepSpeedConfigError(f"deepspeed: {path}: {fault}")
    config = {key: value for key, value in config.items() if key not in REFUSED}  # switched off
    stage, dtype = config.get("zero_optimization", {}).get("stage", 0), _compute_dtype(config)
    if stage == 0:
        # Everything is replicated anyway: weights stay float32 and only the network's body
        # computes in bfloat16, which needs no second copy of them.
        config.pop("bf16", None)
    if "bf16" in config:
        config["bf16"]["check_grad_overflow"] = True  # non-finite gradients skip the update
    # The gradient that is clipped is that of the masters, which DeepSpeed does not see.
    clipping, config["gradient_clipping"] = config.get("gradient_clipping", 0.0), 0.0
    if stage == 3:
        config["zero_optimization"]["sub_group_size"] = ONE_GROUP
    elif stage:
        # Gains of one element would leave the weights after them where kernels read slowly.
        config["zero_optimization"].setdefault("parameter_alignment", True)
    config["train_micro_batch_size_per_gpu"] = micro_batch
    config["gradient_accumulation_steps"] = accumulation
    config.setdefault("steps_per_print", 1_000_000_000)
    # Ranks' gradients are summed in the dtype of the training state. DeepSpeed's own default is
    # the compute dtype, in which every partial sum is rounded.
    config["communication_data_type"] = config.get("communication_data_type") or "fp32"
    # This timer waits for the device at every forward pass and every micro-batch's end.
    config["timers"] = {"throughput": {"enabled": False}}
    config["zero_force_ds_cpu_optimizer"] = False  # offloaded, it is PyTorch's Adam, too
    return DeepSpeedSettings(config, stage, dtype, clipping, path)


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON, which of two values of a key would silently take the last."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"it has {key!r} twice; keep one")
        found[key] = value
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number that settings can have")


def _fault(config: dict[str, Any]) -> str | None:
    """What in a DeepSpeed JSON cannot work here, and what to do about it."""
    zero, dtype = config.get("zero_optimization", {}), _compute_dtype(config)
    stage = zero.get("stage", 0)
    for key, least in {"gradient_clipping": 0, "steps_per_print": 1}.items():
        if (config[key] if config.get(key) is not None else least) < least:
            return f"{key}: {config[key]} is below {least}"
    if config.get("gradient_predivide_factor", 1) <= 0:
        return f"gradient_predivide_factor: {config['gradient_predivide_factor']} is not above 0"
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
        if target.get("super_offload"):
            return "offload_optimizer.super_offload brings an optimizer of its own; remove it"
        least_stage = {"offload_optimizer": 1, "offload_param": 3}[offload]
        if target.get("device", "none") != "none" and stage < least_stage:
            return f"{offload} needs ZeRO stage {least_stage} or more, and stage is {stage}"
    return None


def _compute_dtype(deepspeed_config: dict[str, Any]) -> torch.dtype:
    if deepspeed_config.get("bf16", {}).get("enabled"):
        return torch.bfloat16
    if deepspeed_config.get("fp16", {}).get("enabled"):
        return torch.float16
    return torch.float32
