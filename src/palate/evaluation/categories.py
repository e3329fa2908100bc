"""Many comparisons at once: a table by category of prompts, and Holm's correction, without which one of twenty
categories differs by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from palate.evaluation.win_rate import WinRate, win_rate_of


@dataclass(frozen=True)
class Row:
    """A category's win rate, and p, the sign test's, adjusted for all categories of the table (Holm)."""

    category: str
    wins: WinRate
    p: float


def by_category(won: ArrayLike, prompts: Sequence[str], categories: Sequence[str], *, seed: int = 0) -> list[Row]:
    """A row for each category, in the order in which they come; those without a known outcome are left out.

    won [n]: 1 A, 0 B, .5 a tie, NaN none. Pairs without a category ("") are in no row.
    """
    values, names = np.asarray(won, np.float64), np.asarray(categories)
    if len(values) != len(prompts) or len(values) != len(names):
        raise ValueError(
            f"{len(values)} outcomes need as many prompts and categories, got {len(prompts)}, {len(names)}"
        )
    found: dict[str, WinRate] = {}
    for name in dict.fromkeys(categories):
        rows = np.flatnonzero((names == name) & ~np.isnan(values))
        if name and len(rows):
            found[name] = win_rate_of(values[rows], [prompts[row] for row in rows.tolist()], seed=seed)
    adjusted = holm([wins.p for wins in found.values()])
    return [Row(name, wins, p) for (name, wins), p in zip(found.items(), adjusted, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm, 1979): those below .05 hold together with a chance of 5% at most that any is false.

    NaN, no test, stays NaN and counts for nothing.
    """
    p = np.asarray(p_values, np.float64)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    out = np.full(len(p), np.nan)
    if len(order):
        out[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return [float(value) for value in out]
