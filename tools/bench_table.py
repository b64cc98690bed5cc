"""One table of many measurements: `python tools/bench_table.py RESULTS`.

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


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


if __name__ == "__main__":
    main()
