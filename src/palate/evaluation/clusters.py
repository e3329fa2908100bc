"""Intervals where evidence comes in clusters of two kinds at once: prompts that are alike, and people who are."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palate.evaluation.win_rate import NO_INTERVAL, Interval, numbered, wilson

Array = NDArray[np.float64]


def two_way(values: ArrayLike, prompts: Sequence[Hashable], raters: Sequence[Hashable]) -> tuple[float, Interval]:
    """The mean of values [n] and its 95% interval when both other prompts and other raters could have been asked.

    The variance is that of Cameron, Gelbach and Miller (2011): clustered by prompt, plus by rater, less by both; the
    greatest of the three where they leave less. Student's t with Satterthwaite's degrees of freedom, since raters are
    few. Unanimous shares, which vary in nothing, have Wilson's interval over prompts or raters, whichever are fewer;
    other values without variance none. With a single prompt there is no interval; with a single rater it says nothing
    of others, and is by prompt.

    NaN is left out. Raises ValueError if nothing is left.
    """
    known, (of_prompt, of_rater) = numbered(values, prompts, raters)
    n_prompts, n_raters = int(of_prompt.max()) + 1, int(of_rater.max()) + 1
    mean = float(known.mean())
    if n_prompts < 2:
        return mean, NO_INTERVAL
    off = (known - mean) / len(known)
    by_prompt = _variance(off, of_prompt)
    variance, freedom = by_prompt, n_prompts - 1.0
    if n_raters > 1:
        by_rater, by_both = _variance(off, of_rater), _variance(off, of_prompt * n_raters + of_rater)
        whole = max(by_prompt + by_rater - by_both, by_prompt, by_rater)
        of_people = max(whole - by_prompt, 0.0)
        parts = by_prompt**2 / (n_prompts - 1) + of_people**2 / (n_raters - 1)
        variance, freedom = whole, whole**2 / parts if parts > 0 else freedom
    if variance < 1e-18:
        few = min(n_prompts, n_raters) if n_raters > 1 else n_prompts
        return mean, wilson(min(mean * few, few), few) if 0 <= mean <= 1 else NO_INTERVAL
    half = _t(freedom) * math.sqrt(variance)
    return mean, (mean - half, mean + half)


def _variance(off: Array, groups: NDArray[np.int64]) -> float:
    """Of a mean whose parts off it [n] come in groups, for few groups corrected."""
    sums = np.bincount(np.unique(groups, return_inverse=True)[1], off)
    return float((sums**2).sum() * len(sums) / max(len(sums) - 1, 1))


def _t(freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))
