"""EDM2 (arXiv 2312.02696): the magnitude-preserving U-Net and its published files.

    network.py    the U-Net with preconditioning;  layers.py  its pieces
    architecture.py  what it is built from
    sizes.py      the six published sizes
    published_settings.py  the settings in published files
    silent_logvar.py       an uncertainty head that says 0

Imports: networks, pickles.
"""
