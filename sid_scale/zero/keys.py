"""Which keys a DeepSpeed JSON may have here, and with which values.

DeepSpeed ignores keys that it does not know, and leaves "auto" to Hugging Face's Trainer. Its own
models check the sections that have one; the table below lists the rest.
"""

import typing
from collections.abc import Collection, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from sid_scale.config.parse import nearest

LONGEST_KEY = 64  # in messages
Number = (float, int)
DTYPES = frozenset({"fp32", "fp16", "bf16", None})

# Key -> the types of its value, its choices, or a section's keys.
KEYS: dict[str, Any] = {
    "zero_optimization": {},  # DeepSpeed's models know the keys of these three
    "bf16": {},
    "fp16": {},
    "data_types": {"grad_accum_dtype": DTYPES},
    "comms_logger": {
        "enabled": bool,
        "verbose": bool,
        "prof_all": bool,
        "debug": bool,
        "prof_ops": list,
    },
    "gradient_clipping": Number,
    "prescale_gradients": bool,
    "gradient_predivide_factor": Number,
    "communication_data_type": DTYPES,
    "disable_allgather": bool,
    "steps_per_print": (int, type(None)),
    "memory_breakdown": bool,
    "dump_state": bool,
    "zero_allow_untested_optimizer": bool,
}

_YAML = "which the run's YAML decides (batch_size, micro_batch, learning_rate); remove it"
_MONITOR = (
    "but two DeepSpeed engines would write under the same names; remove it: the run folder has "
    "metrics.jsonl and tensorboard/, and log.wandb in the run's YAML has Weights & Biases"
)
_PRECISION = 'but precision is set by "bf16" or "fp16": {"enabled": true}; use one of these'
_TIMERS = (
    "but DeepSpeed's timers take one engine's backward pass at a time, and here one pass goes "
    "through two engines; remove it: metrics.jsonl has images_per_second"
)
_NOTHING = "which has no use in a run here; remove it"

# Key that DeepSpeed knows -> why it cannot be used.
REFUSED = {
    "train_batch_size": _YAML,
    "train_micro_batch_size_per_gpu": _YAML,
    "gradient_accumulation_steps": _YAML,
    "managed_gradient_accumulation": _YAML,
    "optimizer": _YAML,
    "scheduler": _YAML,
    "tensorboard": _MONITOR,
    "wandb": _MONITOR,
    "csv_monitor": _MONITOR,
    "comet": _MONITOR,
    "bfloat16": _PRECISION,
    "amp": _PRECISION,
    "torch_autocast": _PRECISION,
    "wall_clock_breakdown": _TIMERS,
    "flops_profiler": f"{_TIMERS}; `sid-scale memory` tells the FLOP of an image",
    "activation_checkpointing": (
        "but networks here checkpoint their own activations; remove it and use activations in the "
        "run's YAML"
    ),
    "zero_force_ds_cpu_optimizer": (
        "but Adam here is PyTorch's, offloaded or not, which needs no compiler; remove it"
    ),
    "gradient_allreduce_op": "but gradients here are means over ranks; remove it",
    **dict.fromkeys(
        (
            "aio", "autotuning", "checkpoint", "compile", "compression_training",
            "curriculum_learning", "data_efficiency", "dataloader_drop_last", "datastates_ckpt",
            "disable_python_gc", "eigenvalue", "elasticity", "expert_parallel", "graph_harvesting",
            "hybrid_engine",
            "log_level", "nebula", "pipeline", "progressive_layer_drop", "quantize_training",
            "seq_parallel_communication_data_type", "sparse_attention", "sparse_gradients",
            "tensor_parallel", "timers", "use_data_before_expert_parallelism", "vocabulary_size",
            "weight_quantization", "zero_quantized_initialization",
        ),
        _NOTHING,
    ),
}  # fmt: skip

# In zero_optimization: what would go past the checks of settings.py, or bring its own optimizer.
_REFUSED_ZERO = {
    "cpu_offload": 'but it is DeepSpeed\'s old name; use "offload_optimizer": {"device": "cpu"}',
    "cpu_offload_param": 'but it is DeepSpeed\'s old name; use "offload_param": {"device": "cpu"}',
    "cpu_offload_use_pin_memory": "but it is DeepSpeed's old name; use pin_memory of the offload",
    "zenflow": _NOTHING,
    "zero_quantized_nontrainable_weights": (
        "but weights that are frozen stay as they are, to the last bit; remove it"
    ),
    "legacy_stage1": _NOTHING,
    "sub_group_size": (
        "but a network is stepped at once here, after one norm of all its gradients; remove it"
    ),
    "round_robin_gradients": (
        "but masters, averages and checkpoints here know the optimizer's parameters in the "
        "network's order; remove it"
    ),
}


def fault_in_keys(config: dict[str, Any]) -> str | None:
    """The first key of a DeepSpeed JSON that cannot be used, and what to write instead."""
    for name, value in _flat(config):
        if value == "auto":
            return (
                f'{name} is "auto", which only Hugging Face\'s Trainer fills in; '
                "write a value, or remove it"
            )
    for key, value in config.items():
        if key in REFUSED and not is_off(value):
            return f"sets {key!r}, {REFUSED[key]}"
        if key in REFUSED:
            continue
        if key not in KEYS:
            return f"unknown key {_shown(key)}{_section_of(key) or nearest(key, list(KEYS))}"
        fault = _fault_in_value(key, value, KEYS[key])
        if fault:
            return fault
    return _fault_in_sections(config)


def _shown(key: str) -> str:
    """A key as it is printed, in one line whatever it is."""
    return key if key.isidentifier() and len(key) <= LONGEST_KEY else repr(key)[:LONGEST_KEY]


def _section_of(key: str) -> str:
    """A hint, if a key at the top belongs to a section."""
    from deepspeed.runtime.precision_config import DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    sections: dict[str, Collection[str]] = {
        **{name: keys for name, keys in KEYS.items() if isinstance(keys, dict)},
        "zero_optimization": _names(DeepSpeedZeroConfig, []),
        "fp16": _names(DeepSpeedFP16Config, []),
    }
    return next((f"; it belongs to {name}" for name, keys in sections.items() if key in keys), "")


def is_off(value: Any) -> bool:
    """Whether the value of a refused key asks for nothing."""
    return value is None or (value.get("enabled") if isinstance(value, dict) else value) is False


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its full name, however deep."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from _flat(inner, f"{name}[{position}]")
    else:
        yield name, value


def _fault_in_value(name: str, value: Any, wanted: Any) -> str | None:
    if isinstance(wanted, frozenset):
        if value is None or (isinstance(value, str) and value in wanted):
            return None
        return f"{name}: {value!r} is none of {', '.join(sorted(filter(None, wanted)))}"
    if not isinstance(wanted, dict):
        types = wanted if isinstance(wanted, tuple) else (wanted,)
        if isinstance(value, types) and (bool in types or not isinstance(value, bool)):
            return None
        return f"{name}: expected {_WORDS[types[0]]}, got {value!r}"
    if not isinstance(value, dict):
        example = '; write {"enabled": true}' if name in ("bf16", "fp16") else ""
        return f"{name}: expected an object, got {value!r}{example}"
    for key in value:
        if wanted and key not in wanted:
            return f"unknown key {name}.{_shown(key)}{nearest(key, list(wanted))}"
        fault = _fault_in_value(f"{name}.{key}", value[key], wanted[key]) if wanted else None
        if fault:
            return fault
    return None


# Of bf16 and fp16: training state is float32 here.
_HALF_STATE = {
    "bf16_master_weights_and_grads",
    "bf16_optimizer_states",
    "fp16_master_weights_and_grads",
}
_WORDS = {bool: "true or false", float: "a number", int: "a whole number", list: "a list"}


def _fault_in_sections(config: dict[str, Any]) -> str | None:
    """The first fault in a section that DeepSpeed has a model of."""
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    models = {"bf16": DeepSpeedBF16Config, "fp16": DeepSpeedFP16Config}
    for name, model in models.items():
        section = config.get(name, {})
        if not isinstance(section.get("enabled", False), bool):
            return f"{name}.enabled: expected true or false, got {section['enabled']!r}"
        if half := next((key for key in _HALF_STATE if section.get(key)), None):
            return f"sets {name}.{half}, but masters and Adam's state are float32 here; remove it"
        other = "fp16" if name == "bf16" else "bf16"
        for key in section:
            if key not in model.model_fields and key in models[other].model_fields:
                return f"unknown key {name}.{key}: it belongs to {other}; remove it"
    fp16 = config.get("fp16", {})
    if fp16.get("auto_cast"):
        return "sets fp16.auto_cast, but networks here cast their own inputs; remove it"
    for key, (least, most) in {"initial_scale_power": (0, 60), "hysteresis": (1, 1000)}.items():
        value = fp16.get(key, least)
        if type(value) is not int or not least <= value <= most:
            return f"fp16.{key}: {value!r} is no whole number from {least} to {most}"
    if all(config.get(name, {}).get("enabled") for name in models):
        return "enables both bf16 and fp16; remove one of the two"
    zero = config.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    if type(stage) is not int or stage not in range(4):
        return f"asks for ZeRO stage {stage!r}; 0 to 3 exist"
    for key in zero:
        if key in _REFUSED_ZERO and not is_off(zero[key]):
            return f"sets zero_optimization.{key}, {_REFUSED_ZERO[key]}"
    for name, model in {**models, "zero_optimization": DeepSpeedZeroConfig}.items():
        fault = _fault_in_section(name, config.get(name, {}), model)
        if fault:
            return fault
    return None


def _fault_in_section(name: str, section: dict[str, Any], model: type[BaseModel]) -> str | None:
    if "strict" in section:  # an argument of DeepSpeed's models, and no key
        return f"unknown key {name}.strict; remove it"
    try:
        model(**section)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        full = ".".join([name, *(str(part) for part in fault["loc"])])
        if fault["type"] == "extra_forbidden":
            *groups, unknown = (str(part) for part in fault["loc"])
            return f"unknown key {full}{nearest(unknown, _names(model, groups))}"
        message = fault["msg"].removeprefix("Value error, ")
        return f"{full}: {message[:1].lower()}{message[1:]}, got {fault['input']!r}"
    except Exception as error:  # assertions and removed keys, in DeepSpeed's words
        return f"{name}: {error or type(error).__name__}"
    return None


def _names(model: type[BaseModel], groups: list[str]) -> list[str]:
    """The keys of the group of that path in one of DeepSpeed's models."""
    for group in groups:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        hint = fields[group].annotation
        inner = [hint, *typing.get_args(hint)]
        model = next(m for m in inner if isinstance(m, type) and issubclass(m, BaseModel))
    return [field.alias or name for name, field in model.model_fields.items()]
