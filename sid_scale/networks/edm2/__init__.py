"""EDM2 (arXiv 2312.02696): the magnitude-preserving U-Net and its published files.

    network.py    the U-Net with preconditioning;  layers.py  its pieces
    architecture.py  what it is built from
    sizes.py      the six published sizes
    published.py  published pickles to network folders;  published_settings.py  their settings
    export.py     weights under EDM2's names

Imports: networks, pickles, codecs.
"""
