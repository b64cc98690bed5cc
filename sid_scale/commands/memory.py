"""What a run will need of each GPU's memory, and how long it may take, before it is submitted.

    sid-scale memory --config RUN.yaml --nodes 4 --gpus-per-node 8 --gpu-memory 80

One micro-batch of the run's own losses is counted on tensors without numbers: bytes alive, FLOP,
bytes moved, kernels. State is shared out as the ZeRO stage does it. DeepSpeed's buffers and a
margin are estimates; times rest on assumed rates, which are printed. Nothing is trained, and no GPU
is needed. `tools/count_step.py` prints the counts themselves. Exit status: 0 it fits, 1 it does not
or an error.
"""

import argparse

from sid_scale.commands.arguments import above_zero, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help="a YAML file, or the name of a preset")
    parser.add_argument("--nodes", type=positive, default=1)
    parser.add_argument("--gpus-per-node", type=positive, default=8)
    parser.add_argument("--gpu-memory", type=above_zero, default=80.0, help="GB (default: 80)")
    parser.add_argument("overrides", nargs="*", metavar="key=value")


def run(options: argparse.Namespace) -> int:
    from sid_scale.config.run import load_config

    config = load_config(options.config, options.overrides)  # a typo ends here, before torch
    config.accumulation(options.nodes * options.gpus_per_node)
    from sid_scale.estimate.report import describe, make_plan

    plan = make_plan(config, options.nodes, options.gpus_per_node)
    text, fits = describe(plan, options.gpu_memory)
    print(text)
    return 0 if fits else 1
