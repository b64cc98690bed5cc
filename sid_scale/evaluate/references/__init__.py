"""Statistics of real images: files of them (files.py), computed (compute.py) from images or shards
(real_images.py)."""
