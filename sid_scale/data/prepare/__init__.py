"""Making shards, and checking them.

    raw_samples.py   what every source of samples offers
    sources.py       latents and images in files;  pixel_shards.py  images in shards
    cifar10.py       CIFAR-10 in its authors' own archives
    places.py        what a source names: files.py a folder, archives.py a zip or tar, or several
    folder_levels.py which folder is meant;  splits.py  names of splits
    class_labels.py  which class a file is of;  dataset_json.py  by EDM's list
    keys.py          names of samples;  images.py, latents.py  numbers out of files
    plan.py          all that the bytes depend on, decided beforehand
    pack.py          latents and pixels into shards;  encode.py  images by a codec
    build.py         a folder that any number of processes fill;  shard_notes.py  what is done of it
    refusals.py      samples that have no place in a data set;  shard_writer.py  one shard
    verify.py        what is wrong with a data set

Imports: data, pickles, codecs, dtypes, errors, hashing, inputs_changed, process_pool, thread_map.
"""
