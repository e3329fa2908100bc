"""How many draws of the base, of which the judge keeps the best, are worth as much as one of the tuned model.

Two answers, which need not agree. By win rate: the best of n beats one more independent draw with probability
n / (n + 1), whatever the judge, if it never ties (Gui et al., arXiv:2406.00832), so that a win rate w is that of the
best of w / (1 - w). By reward: the n at which the expected best of n base draws has the tuned model's mean reward,
estimated without bias from N draws of each prompt (order statistics, as Nakano et al., arXiv:2112.09332, appendix I).
The best of n costs log n - (n - 1) / n nats of KL at most (Beirami et al., arXiv:2401.01879), against which a tuned
model's KL may be held.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palate.evaluation.win_rate import Interval, numbered, win_rate_of

Array = NDArray[np.float64]


@dataclass(frozen=True)
class BestOfN:
    """n_by_wins with its interval, from `wins`, the chance that a tuned sample beats an independent base sample.

    n_by_reward: infinite where the tuned mean is above the expected best of all `draws` base draws. kl: the bound, in
    nats, of the best of n_by_wins.
    """

    n_by_wins: float
    ci95: Interval
    wins: float
    n_by_reward: float
    draws: int
    kl: float


def equivalence(base: ArrayLike, tuned: ArrayLike, prompts: Sequence[Hashable], *, seed: int = 0) -> BestOfN | None:
    """Of paired scores [n], several of each prompt; None where no prompt has two base draws.

    Pairs that share a seed are not independent: each tuned sample is compared with the other draws of its prompt.
    """
    scores = np.stack([np.asarray(base, np.float64), np.asarray(tuned, np.float64)])
    both = np.where(np.isnan(scores).any(0), np.nan, 0.0)
    if np.isnan(both).all():
        return None
    _, (groups,) = numbered(both, prompts)
    scores = scores[:, ~np.isnan(both)]
    rows = [scores[:, groups == group] for group in range(int(groups.max()) + 1)]
    rows = [row for row in rows if row.shape[1] >= 2]
    if not rows:
        return None
    won = [_beats_others(row[0], row[1]) for row in rows]
    rate = win_rate_of(np.concatenate(won), np.repeat(np.arange(len(rows)), [len(w) for w in won]).tolist(), seed=seed)
    draws = min(row.shape[1] for row in rows)
    curve = np.mean([expected_best(row[0], draws) for row in rows], axis=0)
    n = _odds(rate.rate)
    low, high = (_odds(min(max(end, 0.0), 1.0)) for end in rate.ci95)
    return BestOfN(
        n, (low, high), rate.rate, _crossing(curve, float(np.mean([row[1].mean() for row in rows]))), draws, kl(n)
    )


def expected_best(scores: ArrayLike, most: int | None = None) -> Array:
    """The expected greatest of n of these N scores, drawn without putting back, for n = 1 .. most: unbiased for the
    best of n draws of the model."""
    ordered = np.sort(np.asarray(scores, np.float64))
    n_all = len(ordered)
    rank = np.arange(1, n_all + 1)
    out = []
    for n in range(1, (most or n_all) + 1):
        ways = np.array([math.comb(int(r) - 1, n - 1) for r in rank], float)  # the r-th is the greatest
        out.append(float(ways @ ordered) / math.comb(n_all, n))
    return np.array(out)


def kl(n: float) -> float:
    """log n - (n - 1) / n nats: an upper bound of the best of n's KL from the model; 0 for n up to 1."""
    return math.inf if math.isinf(n) else max(0.0, math.log(max(n, 1.0)) - (max(n, 1.0) - 1) / max(n, 1.0))


def _beats_others(base: Array, tuned: Array) -> Array:
    """[k]: of each tuned sample, the share of the other base draws that it beats, ties half."""
    won = np.where(tuned[:, None] == base[None], 0.5, tuned[:, None] > base[None]).astype(np.float64)
    np.fill_diagonal(won, 0.0)
    return np.asarray(won.sum(1) / (len(base) - 1))


def _odds(rate: float) -> float:
    return math.inf if rate >= 1 else rate / (1 - rate)


def _crossing(curve: Array, level: float) -> float:
    """The n, between whole ones too, at which the rising curve of n = 1, 2 ... reaches the level."""
    if level > curve[-1]:
        return math.inf
    return float(np.interp(level, curve, np.arange(1, len(curve) + 1))) if level > curve[0] else 1.0
