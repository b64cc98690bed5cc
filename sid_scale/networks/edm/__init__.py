"""EDM's pixel networks (arXiv 2206.00364): DDPM++, NCSN++ and ADM with EDM's preconditioning.

    network.py    preconditioning;  unet.py  the two U-Nets;  layers.py  their pieces
    architecture.py  what a network is built from
    sizes.py      the published sizes

Imports: networks.
"""
