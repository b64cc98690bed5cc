"""Noise levels, their schedules and the named noise streams, shared by every method and network.

    noise.py     where randomness comes from;  sigma.py  which noise levels are picked
    few_step.py  a generator's images in one step or a few;  heun.py  EDM's samplers
    augment.py   EDM's augmentation of training images

Imports: networks.
"""
