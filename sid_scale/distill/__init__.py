"""The run: read loop.py first, then step.py, then a method in `sid_scale/methods/`.

    loop.py            the whole run, top to bottom
    step.py            one optimizer step of any role
    ahead.py           micro-batches and their noise, read and drawn one ahead
    build.py           from a config to networks, streams and codec;  inputs.py  compares its files
    blocks.py          recomputation and compilation;  frozen.py  weights that stay as they are
    checkpointing.py   restoring and writing checkpoints;  resume.py  finding the one to go on from
    outputs.py         sample grids, generators as folders;  provenance.py  what they descend from
    telemetry.py       progress bar, metrics.jsonl, TensorBoard;  meter.py  means over ranks
    evaluation.py      what the loop knows of evaluation
    ema_snapshots.py   averages of several widths as snapshots;  phema.py  from those to a network
                       folder of another width, offline
    consolidate.py     from a checkpoint to a network folder, offline
    start_weights.py   what stayed frozen, for both

Imports: config, networks, diffusion, methods, data, zero, generators, health. Names no method and,
but for the generator, no role.
"""
