"""Making shards, and checking them.

    sources.py       what a data set is made of;  files.py  folders and archives by name
    class_labels.py  which class a file is of;  images.py  pixels out of files
    plan.py          all that the bytes depend on, decided beforehand
    pack.py          latents and pixels into shards;  encode.py  images through a VAE
    build.py         a folder that any number of processes fill;  shard_writer.py  one shard
    verify.py        what is wrong with a data set

Imports: data, codecs, dtypes, errors, hashing, inputs_changed, process_pool, thread_map.
"""
