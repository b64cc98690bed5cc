"""Counts one iteration of a run without a GPU: `python tools/count_step.py --config PRESET`.

    python tools/count_step.py --config edm2-img512-xxl-sida --micro-batch 16 --nodes 1

One micro-batch of the run's own losses runs forward and backward on tensors without numbers.
Printed are FLOP, bytes read and written, kernels and the most bytes alive, by phase and by kind of
operation; what of that grows with the micro-batch; memory on each GPU and the time of an iteration
at every ZeRO stage. Times follow from a roofline whose rates are arguments; the defaults are those
assumed of an H100. What counts as a kernel stands in `sid_scale/estimate/count.py`, what limits a
time in `roofline.py`.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from sid_scale.commands.arguments import above_zero, positive
from sid_scale.config.run import load_config
from sid_scale.errors import SidScaleError, print_once
from sid_scale.estimate.roofline import Rates
from sid_scale.estimate.tables import as_json, count_tables, describe_tables


def main() -> int:
    """Prints the tables; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a YAML file, or the name of a preset")
    parser.add_argument("--micro-batch", type=positive, metavar="N", help="in place of the run's")
    parser.add_argument("--nodes", type=positive, default=1)
    parser.add_argument("--gpus-per-node", type=positive, default=8)
    for rate in dataclasses.fields(Rates):
        name = f"--{rate.name.replace('_', '-')}"
        parser.add_argument(name, type=above_zero, default=rate.default, metavar="X")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes all numbers there too")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    rates = Rates(**{rate.name: getattr(options, rate.name) for rate in dataclasses.fields(Rates)})
    overrides = [f"micro_batch={options.micro_batch}"] if options.micro_batch else []
    try:
        config = load_config(options.config, [*options.overrides, *overrides])
        tables = count_tables(config, options.nodes, options.gpus_per_node, rates)
        print(describe_tables(tables))
        if options.json:
            options.json.write_text(json.dumps(as_json(tables), indent=1))
    except (SidScaleError, OSError) as error:
        print_once(error)
        return error.exit_status if isinstance(error, SidScaleError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
