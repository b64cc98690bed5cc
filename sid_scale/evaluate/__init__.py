"""How good are the images?

    samplers.py   what is measured: a generator or a teacher
    engine.py     seeds -> latents -> images -> features;  blocks.py  features on disk
    features.py   which metric looks at what;  detectors.py  networks that look at images
    inception.py  layers of one of them;  inception_files.py  files that hold it
    metrics/      from features to metrics;  references/  statistics of real images
    job.py        one evaluation;  results.py  metrics.json;  offline.py  on ranks
    sweep.py      averages of several widths, one after another
    training.py   evaluation during training

Imports: distill and all that it imports, generators.
"""
