"""How often A beats B, with intervals that know prompts come in groups.

Several pairs of one prompt are not independent evidence: intervals resample prompts, not pairs (a cluster bootstrap).
Its percentiles are too close together where prompts are few; up to FEW of them the interval is Student's t, for a share
in Wilson's form with the effective size (Dean and Pagano, 2015, Journal of Survey Statistics and Methodology 3(4)).
Arrays are paired: entry i of each is about one prompt and, if the samples were made so, one seed. Pairs with a NaN in
either score are left out. All is deterministic given `seed`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Interval = tuple[float, float]
_Z95 = 1.959963984540054  # the normal's 97.5% point
NO_INTERVAL: Interval = (-math.inf, math.inf)  # one prompt says nothing of others
FEW = 100  # prompts up to which intervals are not resampled
_CHUNK = 256  # bootstrap resamples at a time, to bound memory


@dataclass(frozen=True)
class WinRate:
    """rate: (wins + ties / 2) / n. ci95: of prompts, as above. ties: their share. n: pairs. n_prompts: distinct ones.

    decided: wins of A among the pairs that are no ties, NaN if all are, with its interval, likewise.
    wilson95: of the rate, if every pair were evidence of its own. p: the exact sign test over prompts.
    """

    rate: float
    ci95: Interval
    ties: float
    n: int
    n_prompts: int
    decided: float = math.nan
    decided_ci95: Interval = (-math.inf, math.inf)
    wilson95: Interval = (0.0, 1.0)
    p: float = math.nan


@dataclass(frozen=True)
class Mean:
    """A mean over n values of n_prompts prompts, with its 95% interval for other prompts."""

    mean: float
    ci95: Interval
    n: int
    n_prompts: int


@dataclass(frozen=True)
class Comparison:
    """A and B on one dimension: both means, the mean of the paired differences A - B, and the win rate of A."""

    a: Mean
    b: Mean
    difference: Mean
    wins: WinRate


def outcomes(scores_a: ArrayLike, scores_b: ArrayLike) -> Array:
    """1 where A scores higher, 0 where B does, .5 a tie, NaN where either is NaN: [n]."""
    a, b = _pair(scores_a, scores_b)
    return np.where(np.isnan(a) | np.isnan(b), np.nan, np.where(a == b, 0.5, a > b))


def win_rate(
    scores_a: ArrayLike, scores_b: ArrayLike, prompts: Sequence[Hashable], *, seed: int = 0, resamples: int = 4000
) -> WinRate:
    """Win rate of A over B from paired scores [n] and each pair's prompt [n]."""
    return win_rate_of(outcomes(scores_a, scores_b), prompts, seed=seed, resamples=resamples)


def win_rate_of(won: ArrayLike, prompts: Sequence[Hashable], *, seed: int = 0, resamples: int = 4000) -> WinRate:
    """Win rate of A from judgements [n]: 1 A, 0 B, .5 a tie (or a probability between), NaN none.

    Where every prompt has the same outcome a bootstrap interval has no width however few prompts there are; there it is
    Wilson's over prompts instead. Raises ValueError for judgements outside [0, 1] or none at all.
    """
    values, groups = _known(won, prompts)
    if ((values < 0) | (values > 1)).any():
        raise ValueError("judgements must lie from 0 (B) to 1 (A)")
    decided = values != 0.5
    rate, ci95, n_prompts = _share(values, groups, seed, resamples)
    without = _share(values[decided], groups[decided], seed, resamples) if decided.any() else (math.nan, NO_INTERVAL, 0)
    return WinRate(
        rate,
        ci95,
        float((~decided).mean()),
        len(values),
        n_prompts,
        decided=without[0],
        decided_ci95=without[1],
        wilson95=wilson(float(values.sum()), len(values)),
        p=sign_test(values, list(groups)),
    )


def _share(values: Array, groups: NDArray[np.int64], seed: int, resamples: int) -> tuple[float, Interval, int]:
    """A mean of outcomes, its interval and the number of prompts behind it."""
    groups = np.unique(groups, return_inverse=True)[1]
    rate, n = float(values.mean()), int(groups.max()) + 1
    means = np.bincount(groups, values) / np.bincount(groups)
    independent = n == len(values) and bool(np.isin(values, (0, 1)).all())
    if np.ptp(means) == 0 or (n <= FEW and independent):
        return rate, wilson(min(rate * n, n), n), n
    if n <= FEW:
        size = rate * (1 - rate) / _variance(values, groups)
        return rate, _score(rate, size, _t(n - 1)), n
    return rate, _bootstrap(values, groups, seed, resamples), n


def sign_test(won: ArrayLike, prompts: Sequence[Hashable]) -> float:
    """The exact two-sided chance of prompts being so one-sided if either model were as likely to be ahead in each.

    A prompt's sign is that of its mean outcome less one half; prompts that are even are left out, as in the classical
    test; 1 if all are. Prompts, not pairs, are the unit: pairs of one prompt stand or fall together.
    """
    from scipy.stats import binomtest

    means = per_prompt(won, prompts)
    ahead, behind = int((means > 0.5).sum()), int((means < 0.5).sum())
    return float(binomtest(ahead, ahead + behind).pvalue) if ahead + behind else 1.0


def per_prompt(values: ArrayLike, prompts: Sequence[Hashable]) -> Array:
    """The mean of each prompt's values [n_prompts], in the order in which prompts come; NaN is left out."""
    known, groups = _known(values, prompts)
    return np.asarray(np.bincount(groups, known) / np.bincount(groups))


def wilson(wins: float, n: float) -> Interval:
    """Wilson's 95% interval of a share (1927), ties as half wins; it takes every judgement for independent."""
    if not 0 <= wins <= n or n <= 0:
        raise ValueError(f"wilson needs 0 <= wins <= n and n > 0, got {wins} of {n}")
    return _score(wins / n, n, _Z95)


def _score(rate: float, n: float, z: float) -> Interval:
    """Where a share would lie z standard errors of its own from what was seen."""
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def _variance(values: Array, groups: NDArray[np.int64]) -> float:
    """Of the mean of values that come in groups: linearised, since groups differ in size, and for few corrected."""
    off = np.bincount(groups, values - values.mean()) / len(values)
    return float((off**2).sum() * len(off) / (len(off) - 1))


def _t(freedom: float) -> float:
    """Student's 97.5% point."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))


def mean(values: ArrayLike, prompts: Sequence[Hashable], *, seed: int = 0, resamples: int = 4000) -> Mean:
    """The mean of values [n] with each value's prompt [n]; NaN is left out."""
    known, groups = _known(values, prompts)
    middle, n = float(known.mean()), int(groups.max()) + 1
    if 2 <= n <= FEW:
        half = _t(n - 1) * math.sqrt(_variance(known, groups))
        return Mean(middle, (middle - half, middle + half), len(known), n)
    return Mean(middle, _bootstrap(known, groups, seed, resamples), len(known), n)


def mean_difference(
    scores_a: ArrayLike, scores_b: ArrayLike, prompts: Sequence[Hashable], *, seed: int = 0, resamples: int = 4000
) -> Mean:
    """The mean of the paired differences A - B."""
    a, b = _pair(scores_a, scores_b)
    return mean(a - b, prompts, seed=seed, resamples=resamples)


def ratio(top: ArrayLike, bottom: ArrayLike, *, seed: int = 0, resamples: int = 4000) -> tuple[float, Interval]:
    """The ratio of two means of values paired by prompt [n_prompts], and its 95% interval, prompts resampled."""
    a, b = _pair(top, bottom)
    if b.sum() == 0:
        return math.nan, NO_INTERVAL
    if len(a) < 2:
        return float(a.sum() / b.sum()), NO_INTERVAL
    drawn = np.concatenate(list(_resampled(a, b, seed, resamples)))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(a.sum() / b.sum()), (float(low), float(high))


def compare(
    scores_a: Mapping[str, ArrayLike],
    scores_b: Mapping[str, ArrayLike],
    prompts: Sequence[Hashable],
    *,
    seed: int = 0,
    resamples: int = 4000,
) -> dict[str, Comparison]:
    """A and B on every dimension they share, `{dimension: [n]}` each, in A's order.

    Raises ValueError if they share none; one of which no pair is known is left out. Means are of the
    pairs where both are known, so that they differ by exactly the mean difference.
    """
    shared = [name for name in scores_a if name in scores_b]
    if not shared:
        raise ValueError(f"no dimension in common: A has {', '.join(scores_a)}; B has {', '.join(scores_b)}")
    found = {}
    for name in shared:
        a, b = _pair(scores_a[name], scores_b[name])
        either = np.isnan(a) | np.isnan(b)
        if either.all():
            continue
        options = {"seed": seed, "resamples": resamples}
        found[name] = Comparison(
            mean(np.where(either, np.nan, a), prompts, **options),
            mean(np.where(either, np.nan, b), prompts, **options),
            mean_difference(a, b, prompts, **options),
            win_rate(a, b, prompts, **options),
        )
    return found


def _pair(scores_a: ArrayLike, scores_b: ArrayLike) -> tuple[Array, Array]:
    a, b = np.asarray(scores_a, np.float64), np.asarray(scores_b, np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"paired scores must be two lists of one length, got shapes {a.shape} and {b.shape}")
    return a, b


def numbered(
    values: ArrayLike, *labels: Sequence[Hashable], keep: Sequence[int] = ()
) -> tuple[Array, tuple[NDArray[np.int64], ...]]:
    """The values that are not NaN, and each one's labels as numbers from 0 in the order in which they come.

    keep: which labels are numbers already. Raises ValueError for lists of other lengths, or if nothing is known.
    """
    values = np.asarray(values, np.float64)
    for label in labels:
        if values.ndim != 1 or len(values) != len(label):
            raise ValueError(f"one prompt per value is needed, got {len(label)} for values of shape {values.shape}")
    known = ~np.isnan(values)
    if not known.any():
        raise ValueError("there is no judged pair to count: every score is missing")
    numbers = []
    for place, label in enumerate(labels):
        first: dict[Hashable, int] = {}
        rows = (entry for entry, there in zip(label, known, strict=True) if there)
        found = list(rows) if place in keep else [first.setdefault(entry, len(first)) for entry in rows]
        numbers.append(np.array(found, np.int64))
    return values[known], tuple(numbers)


def _known(values: ArrayLike, prompts: Sequence[Hashable]) -> tuple[Array, NDArray[np.int64]]:
    known, (groups,) = numbered(values, prompts)
    return known, groups


def _bootstrap(values: Array, groups: NDArray[np.int64], seed: int, resamples: int) -> Interval:
    """Percentile interval of the mean over resampled prompts; (-inf, inf) for one prompt: it says nothing of others."""
    sums, counts = np.bincount(groups, values).astype(np.float64), np.bincount(groups).astype(np.float64)
    if len(sums) < 2:
        return NO_INTERVAL
    rates = np.concatenate(list(_resampled(sums, counts, seed, resamples)))
    low, high = np.quantile(rates, [0.025, 0.975])
    return float(low), float(high)


def _resampled(sums: Array, counts: Array, seed: int, resamples: int) -> Iterator[Array]:
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        times = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=size)
        yield (times @ sums) / (times @ counts)
