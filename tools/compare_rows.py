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


ROWS = (
    Row("SiD", "digits", ("method=sid",)),
    Row("SiDA", "digits"),
    Row("SiD2A", "digits", ("method=sid2a",), after="SiD"),
    Row("SiDA, two steps", "digits", ("steps=2",)),
    Row("SiDA, four steps", "digits", ("steps=4",)),
    Row("GDD", "digits-gdd"),
    Row("GDD-I", "digits-gdd-i"),
    Row("SiD, pixels", "digits-pixels", ("method=sid",)),
    Row("SiDA, pixels", "digits-pixels"),
    Row("SiD2A, pixels", "digits-pixels", ("method=sid2a",), after="SiD, pixels"),
    Row("GDD, pixels", "digits-pixels-gdd"),
    Row("GDD-I, pixels", "digits-pixels-gdd-i"),
)


def row_named(name: str) -> Row:
    """Raises KeyError: there is none."""
    return {row.name: row for row in ROWS}[name]
