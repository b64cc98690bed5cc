"""From features to metrics, out of what an evaluation keeps on disk (from_features.py).

distances.py   Fréchet distances, Inception Score
kernel.py      kernel distances: KID
monge.py       sliced Wasserstein distances: MIND
neighbours.py  precision, recall, density, coverage
"""
