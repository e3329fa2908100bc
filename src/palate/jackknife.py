"""Intervals of what is made of sums over clusters: each cluster is left out in turn.

    estimate, low, high = interval(strengths_of, wins_by_prompt)

Percentiles of a bootstrap are too narrow where clusters are few, or the estimate bends; Student's t on what leaving
each out changes is not (Efron and Stein, 1981; Miller, 1974).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
BLOCKS = 100  # more clusters are left out in as many blocks, drawn once: the interval gains nothing from more


def interval(of: Callable[[Array], Array], clusters: Array, seed: int = 0) -> tuple[Array, Array, Array]:
    """What `of` makes of the sum of clusters [n, ...], and its 95% interval: estimate, low, high, as `of` gives it.

    The ends are NaN where nothing bounds them: of a single cluster, or where leaving one out leaves no estimate.
    """
    from scipy.stats import t

    whole = clusters.sum(0)
    estimate = np.asarray(of(whole), np.float64)
    n = min(len(clusters), BLOCKS)
    if n < 2:
        return estimate, np.full_like(estimate, np.nan), np.full_like(estimate, np.nan)
    order = np.random.default_rng(seed).permutation(len(clusters))
    without = np.stack([of(whole - clusters[block].sum(0)) for block in np.array_split(order, n)])
    error = np.sqrt((n - 1) / n * ((without - without.mean(0)) ** 2).sum(0))
    half = float(t.ppf(0.975, n - 1)) * error
    return estimate, estimate - half, estimate + half
