"""Recorded quantities as a person would name them: the title of a plot, and the label of a curve.

`metrics.jsonl` names a quantity `KIND` or `KIND/PART`, such as `grad_norm/fake_score`. Parts of a
kind share a plot, unless they have titles of their own.
"""

from typing import NamedTuple

LOSS, BY_SIGMA = "loss/", "_by_sigma"

TITLES = {
    "checkpoint/gigabytes": "Checkpoint size (GB)",
    "checkpoint/pause_seconds": "Pause for a checkpoint (s)",
    "checkpoint/write_seconds": "Time to write a checkpoint (s)",
    "data_wait_seconds": "Wait for data (s)",
    "data/skipped_samples": "Skipped samples, total",
    "density_ratio": "Density ratio",
    "density_ratio/effective_share": "Effective share of the batch",
    "evaluation_seconds": "Time for an evaluation (s)",
    "grad_norm": "Gradient norm",
    "images_per_second": "Images per second",
    "learning_rate": "Learning rate",
    "logits": "Discriminator logits, mean",
    "loss/generator_gan": "Generator loss, adversarial term",
    "loss/generator_sid": "Generator loss, SiD term",
    "loss/r1": "R1 loss",
    "memory_gb": "Peak memory (GB)",
    "mfu": "Model FLOPs utilisation (MFU)",
    "pause_seconds": "Pauses (s)",
    "r1_penalty": "R1 penalty",
    "skipped_updates": "Skipped updates, total",
    "step_seconds": "A rank's own time per iteration (s)",
    "tflops_per_device": "TFLOP/s per device",
}
UNITS = {"seconds": "s", "gb": "GB", "gigabytes": "GB", "percent": "%"}  # at the end of a name
ACRONYMS = {"gan": "GAN", "kl": "KL", "mfu": "MFU", "r1": "R1", "sid": "SiD", "tflops": "TFLOPS"}


class Titled(NamedTuple):
    """Where a quantity is drawn."""

    title: str  # of the plot
    label: str  # of its curve there


def titled(name: str) -> Titled:
    """A quantity that is no loss."""
    if name in TITLES:
        return Titled(TITLES[name], words(name.split("/", 1)[-1]))
    kind, _, part = name.partition("/")
    if kind.endswith(BY_SIGMA):
        return Titled(
            f"{capital(words(kind.removesuffix(BY_SIGMA)))} by noise level", _sigmas(part)
        )
    return Titled(TITLES.get(kind) or capital(_with_unit(kind)), words(part or kind))


def loss_title(name: str) -> str:
    """A loss."""
    return TITLES.get(name) or f"{capital(words(name.removeprefix(LOSS)))} loss"


def words(name: str) -> str:
    """`fake_score` -> "fake score"."""
    return " ".join(ACRONYMS.get(word, word) for word in name.split("_"))


def capital(text: str) -> str:
    """With a capital letter at its beginning."""
    return text[:1].upper() + text[1:]


def _with_unit(name: str) -> str:
    rest, _, last = name.rpartition("_")
    return f"{words(rest)} ({UNITS[last]})" if rest and last in UNITS else words(name)


def _sigmas(part: str) -> str:
    """`0.1-0.3` -> "sigma 0.1 to 0.3"."""
    low, _, high = part.partition("-")
    return f"sigma above {low}" if high == "inf" else f"sigma {low} to {high}"
