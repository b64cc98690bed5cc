"""Shards of samples, and the stream that reads them. `prepare/` makes them.

    shards.py         what a shard and its index hold;  tar_layout.py  where samples are in a file
    order.py          which sample comes at which position of a run
    stream.py         micro-batches, read ahead;  batch_reader.py  reads one
    shard_readers.py  opens shards;  remote.py  from afar;  shard_cache.py  through a local disk
    labels.py         classes alone, for generated images

Imports: config, errors, atomic, hashing.
"""
