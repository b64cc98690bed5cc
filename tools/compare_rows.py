"""The rows of `compare_methods.py`: what is compared, and with which settings."""

from dataclasses import dataclass

LATENTS, PIXELS = "latents", "pixels"
GUIDE = "{guide}"  # in overrides: the folder of a weaker teacher


@dataclass(frozen=True)
class Row:
    """One method with its options, on the digits."""

    name: str
    preset: str
    overrides: tuple[str, ...] = ()
    rate: float = 1.0  # factor of the preset's learning rates
    after: str | None = None  # row whose generator, at half of the images, this one starts from

    @property
    def domain(self) -> str:
        return PIXELS if "pixels" in self.preset else LATENTS


KL = ("objective.gradient=kl",)
GUIDED = (f"objective.guide={GUIDE}", "objective.guidance=1.5")


def _weighted(divergence: str) -> tuple[str, ...]:
    return (f"objective.divergence={divergence}",)


# Rates are the best of `compare_methods.py --choose`, on another seed and another half of the
# digits than what is reported (docs/methods.md has its table); rows that are not there take the
# rate of the method that they are a form of.
ROWS = (
    Row("SiD", "digits", ("method=sid",)),
    Row("SiD, KL gradient", "digits", ("method=sid", *KL), rate=2),
    Row("SiD, guided", "digits", ("method=sid", *GUIDED)),
    Row("SiDA", "digits", rate=4),
    Row("SiDA, forward KL", "digits", _weighted("forward_kl"), rate=4),
    Row("SiDA, Jeffreys", "digits", _weighted("jeffreys"), rate=4),
    Row("SiDA, Jensen-Shannon", "digits", _weighted("jensen_shannon"), rate=4),
    Row("SiDA, KL gradient", "digits", KL, rate=4),
    Row("SiDA, KL gradient, 5 fake", "digits", (*KL, "objective.fake_score_updates=5"), rate=4),
    Row("SiDA, guided", "digits", GUIDED, rate=4),
    Row("SiDA, two steps", "digits", ("steps=2",), rate=4),
    Row("SiDA, four steps", "digits", ("steps=4",), rate=4),
    Row("SiD2A", "digits", ("method=sid2a",), rate=4, after="SiD"),
    Row("GDD", "digits-gdd", rate=2),
    Row("GDD-I", "digits-gdd-i", rate=4),
    Row("GDD, teacher's features", "digits-latents-gdd"),
    Row("SiD, pixels", "digits-pixels", ("method=sid",)),
    Row("SiDA, pixels", "digits-pixels"),
    Row("SiDA, KL gradient, pixels", "digits-pixels", KL),
    Row("SiDA, guided, pixels", "digits-pixels", GUIDED),
    Row("SiD2A, pixels", "digits-pixels", ("method=sid2a",), after="SiD, pixels"),
    Row("GDD, pixels", "digits-pixels-gdd", rate=2),
    Row("GDD-I, pixels", "digits-pixels-gdd-i", rate=2),
)

CHOSEN = (  # rows whose rates were compared
    "SiD",
    "SiD, KL gradient",
    "SiDA",
    "SiDA, KL gradient",
    "GDD",
    "GDD-I",
    "SiDA, pixels",
    "GDD, pixels",
    "GDD-I, pixels",
)


def row_named(name: str) -> Row:
    """Raises KeyError: there is none."""
    return {row.name: row for row in ROWS}[name]
