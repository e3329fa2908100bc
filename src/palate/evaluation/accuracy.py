"""How often a scorer agrees with people, pair by pair, ties left out or counted.

With ties, a scorer that never returns two equal numbers can call a tie only by a threshold: pairs whose scores differ
by no more are ties. The threshold that agrees best is chosen, as in "Ties Matter" (Deutsch et al., arXiv:2305.14324),
which VideoAlign's accuracy follows; chosen and judged on the same pairs it flatters, so that one may be given, or found
on other prompts.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palate.evaluation.win_rate import Mean, mean

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Accuracy:
    """without_ties: over the pairs that people decided, a scorer's tie half right; None if they decided none.

    with_ties: over all pairs, at `threshold`, differences up to which the scorer is taken to call a tie.
    """

    without_ties: Mean | None
    with_ties: Mean
    threshold: float


def pairwise(
    people: ArrayLike,
    difference: ArrayLike,
    prompts: Sequence[Hashable],
    *,
    threshold: float | None = None,
    crossed: bool = False,
    seed: int = 0,
) -> Accuracy:
    """people [n]: 1 A, 0 B, .5 a tie; difference [n]: the scorer's of A less that of B; NaN in either is left out.

    threshold: of a tie; None takes the one that agrees best with these pairs. crossed: each half of the prompts is
    judged by the threshold of the other half, and the one returned is that of all. Raises ValueError if none is known.
    """
    said, off = np.asarray(people, np.float64), np.asarray(difference, np.float64)
    if said.shape != off.shape or said.ndim != 1:
        raise ValueError(f"judgements and differences must be two lists of one length, got {said.shape}, {off.shape}")
    known = ~(np.isnan(said) | np.isnan(off))
    said, off, rows = said[known], off[known], [p for p, k in zip(prompts, known, strict=True) if k]
    said = np.sign(said - 0.5)
    if not len(said):
        raise ValueError("no pair is judged both by people and by the scorer")
    levels: float | Array | None = threshold
    if threshold is None:
        threshold = calibrated(said, off)
        levels = _crossed(said, off, rows, seed) if crossed else threshold
    decided = said != 0
    right = np.where(np.sign(off) == 0, 0.5, np.sign(off) == said)
    without = None
    if decided.any():
        without = mean(right[decided], [p for p, d in zip(rows, decided, strict=True) if d], seed=seed)
    called = np.where(np.abs(off) <= levels, 0.0, np.sign(off))
    return Accuracy(without, mean((called == said).astype(np.float64), rows, seed=seed), threshold)


def calibrated(said: ArrayLike, difference: ArrayLike) -> float:
    """The least threshold of |difference| that agrees with most judgements said [n], 1 A, -1 B, 0 a tie.

    -1 where nothing should be called a tie, not even equal scores.
    """
    signs, off = np.asarray(said, np.float64), np.asarray(difference, np.float64)
    size = np.abs(off)
    order = np.argsort(size, kind="stable")
    gain = np.where(signs == 0, 1, -(np.sign(off) == signs).astype(int))[order]  # of calling each a tie, least first
    ends = np.append(np.flatnonzero(np.diff(size[order]) > 0), len(size) - 1)  # equal sizes are called together
    totals = np.append(0, np.cumsum(gain)[ends])
    best = int(np.argmax(totals))
    return -1.0 if best == 0 else float(size[order][ends[best - 1]])


def _crossed(said: Array, off: Array, prompts: Sequence[Hashable], seed: int) -> Array:
    """Each pair's threshold [n], found on the half of the prompts that its own is not in."""
    number = {name: i for i, name in enumerate(dict.fromkeys(prompts))}
    half = np.random.default_rng(seed).permutation(len(number)) % 2 == 0
    first = half[[number[name] for name in prompts]]
    levels = np.full(len(off), -1.0)
    for mine in (first, ~first):
        if (~mine).any():
            levels[mine] = calibrated(said[~mine], off[~mine])
    return levels


def correlations(people: ArrayLike, difference: ArrayLike) -> tuple[float, float]:
    """Kendall's tau-b and Spearman's rho of judgements and differences; NaN where either does not vary."""
    from scipy.stats import kendalltau, spearmanr

    said, off = np.asarray(people, np.float64), np.asarray(difference, np.float64)
    known = ~(np.isnan(said) | np.isnan(off))
    if len(np.unique(said[known])) < 2 or len(np.unique(off[known])) < 2:
        return math.nan, math.nan
    return float(kendalltau(said[known], off[known]).statistic), float(spearmanr(said[known], off[known]).statistic)
