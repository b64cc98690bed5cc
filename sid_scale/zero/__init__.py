"""Networks in shards: DeepSpeed engines, normalisation, averages and checkpoints.

    engines.py          one DeepSpeed engine a network: call, freeze, step
    frozen.py           parameters that stay as they are while others are trained
    settings.py         the DeepSpeed JSON, read and checked;  keys.py  the keys it may have
    fragments.py        which slice of which parameter a rank owns, at every ZeRO stage
    forward_weights.py  forward weights made of the masters once an update; forced normalisation
    ema.py              averages of the masters, in shards;  power_ema.py  EDM2's widths;
    snapshots.py        averages of several widths on the disk
    checkpoint.py       the training state as a rank's share;  writer.py  writes it,
    saved.py            reads it without DeepSpeed;  retention.py  which checkpoints stay

Knows no network, no method and no run. Imports: ranks, atomic files, tensor files.
"""
