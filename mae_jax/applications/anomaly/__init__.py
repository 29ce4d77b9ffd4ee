"""Anomalies: what differs from good examples, by a score of each input and a map of its patches.

`fit` makes a `Detector` of good examples alone; see `scorers` for how it scores.
"""

# ruff: noqa: F401
from mae_jax.applications.anomaly.detector import Detector, Scores
from mae_jax.applications.anomaly.fitting import fit
from mae_jax.applications.anomaly.settings import Settings, Tiles
