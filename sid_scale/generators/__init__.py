"""One-step generators at work.

    generator.py     OneStepGenerator: classes and seeds in, images out
    folder.py        a generator's folder;  card.py  its model card;  measured.py  its figures
    diffusers_folder.py   the same folder for diffusers;  diffusers_pipeline.py  its pipeline
    image_folder.py  images of every class and seed in a folder;  generate.py  makes them on ranks

Imports: config, networks, diffusion, codecs.
"""
