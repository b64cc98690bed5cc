"""Statistics of real images: files of them (files.py), which of them a
metric takes (find.py), computed (compute.py) from images or shards
(real_images.py)."""
