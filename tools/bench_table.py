"""One table of what `bench_step.py` measured: `python tools/bench_table.py RESULTS`.

RESULTS has one line for each run of `bench_step.py --json`; of a run that failed, the words of its
row and an error.
"""

import argparse
import json
from pathlib import Path
from typing import Any

COLUMNS = (
    ("size", 8),
    ("batch", 12),
    ("activations", 12),
    ("blocks", 9),
    ("images/s", 10),
    ("plain", 10),
    ("ratio", 18),
    ("matmul", 8),
    ("plain", 8),
    ("GB", 8),
    ("plain", 8),
    ("waits", 7),
)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    results = parser.parse_args().results.read_text().splitlines()
    print("".join(f"{title:>{width}}" for title, width in COLUMNS))
    for result in map(json.loads, results):
        print("".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells(result), COLUMNS)))
        if "error" in result:
            print(f"    {result['error']}")


def cells(result: dict[str, Any]) -> list[str]:
    """A result in the columns' order; "-" where nothing was measured."""
    if "error" in result:
        size, micro_batch, activations, blocks, _ = result["row"].split()
        return [size, micro_batch, activations, blocks]
    own, plain = result.get("own", {}), result.get("plain", {})
    ratio = result.get("speed_ratio")
    accumulation = result["batch"] // result["micro_batch"]
    return [
        result["what"],
        f"{result['micro_batch']} x {accumulation}",
        result["activations"],
        "compiled" if result["compile"] else "eager",
        _number(own.get("images_per_second"), ".4g"),
        _number(plain.get("images_per_second"), ".4g"),
        "{median:.2f} ({least:.2f}-{most:.2f})".format(**ratio) if ratio else "-",
        _number(own.get("utilisation"), ".1%"),
        _number(plain.get("utilisation"), ".1%"),
        _number(own.get("peak_gigabytes"), ".2f"),
        _number(plain.get("peak_gigabytes"), ".2f"),
        _number(own.get("synchronisations"), "d"),
    ]


def details(figures: dict[str, Any]) -> str:
    """One result, phase by phase, as lines to read."""
    names = [name for name in ("own", "plain") if name in figures]
    both = len(names) == 2
    rows: list[tuple[str, list[str], str]] = []

    def row(title: str, *path: str, form: str = ".2f", ratio: str = "") -> None:
        cells = []
        for name in names:
            value: Any = figures[name]
            for key in path:
                value = value.get(key) if value else None
            cells.append("-" if value is None else f"{value:{form}}")
        rows.append((title, cells, ratio))

    def faster(key: str) -> str:
        ratio = figures.get(key)
        return "{median:.2f} ({least:.2f} to {most:.2f})".format(**ratio) if ratio else ""

    row("images a second", "images_per_second", form=".3g", ratio=faster("speed_ratio"))
    row("seconds of the host's cores", "cpu_seconds", ratio=faster("cpu_ratio"))
    row("share of a matrix product's rate", "utilisation", form=".1%")
    smaller = figures.get("memory_ratio")
    row("peak memory, GB", "peak_gigabytes", ratio=f"{smaller:.2f}" if smaller else "")
    row("synchronisations", "synchronisations", form="d")
    phases = dict.fromkeys(p for name in names for p in figures[name]["milliseconds"])
    for phase in phases:
        row(f"ms {phase}", "milliseconds", phase, form=".1f")
    accumulation = figures["batch"] // figures["micro_batch"]
    compiled = ", compiled" if figures["compile"] else ""
    lines = [
        f"{figures['what']} ({figures['parameters'] / 1e6:.1f} M parameters), {figures['method']}, "
        f"batch {figures['batch']} = {figures['micro_batch']} x {accumulation}, "
        f"ZeRO {figures['stage']}, activations {figures['activations']}{compiled}",
        f"{figures['device']}; {figures['tflop']:.3g} TFLOP an iteration",
        "",
        f"{'':34}" + "".join(f"{name:>12}" for name in names) + ("   ratio" if both else ""),
        f"{'dtype':34}" + "".join(f"{figures[name]['dtype']:>12}" for name in names),
    ]
    lines += [
        f"{title:34}" + "".join(f"{c:>12}" for c in cells) + f"   {ratio}".rstrip()
        for title, cells, ratio in rows
    ]
    return "\n".join(lines)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


if __name__ == "__main__":
    main()
