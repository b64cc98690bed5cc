"""From features to metrics, out of what an evaluation keeps on disk (from_features.py).

Fréchet distances and Inception Score are in distances.py, precision and recall in
precision_recall.py.
"""
