"""Several models on one scale: Bradley-Terry strengths from all their pairs, with intervals that know prompts.

Ties are half a win for each (evalica's tie weight); the fit is evalica's, the intervals leave prompts out.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palate import jackknife
from palate.evaluation.win_rate import Interval, numbered

Array = NDArray[np.float64]
ELO = 400 / math.log(10)  # points of a unit of strength, in which chess players are told
PRIOR = 0.5  # wins each way that every two models are taken to have had: a model that never loses is not endless


@dataclass(frozen=True)
class Strength:
    """A model's log strength less the first model's, so that sigmoid(strength) is its chance against the first.

    elo: the same in Elo points. An end of ci95 is infinite where nothing bounds it: a model that never lost, or won.
    """

    model: str
    strength: float
    ci95: Interval
    elo: float
    elo_ci95: Interval


def strengths(
    models: Sequence[str],
    a: Sequence[int],
    b: Sequence[int],
    won: ArrayLike,
    prompts: Sequence[Hashable],
    *,
    prior: float = PRIOR,
    seed: int = 0,
) -> list[Strength]:
    """One of each model, in the models' order. a, b [n]: which two were compared, won [n]: 1 a, 0 b, .5 a tie.

    Raises ValueError for fewer than two models, or one that was never compared.
    """
    wins = table(len(models), a, b, won, prompts)
    for model, games in zip(models, (wins + wins.transpose(0, 2, 1)).sum((0, 2)), strict=True):
        if games == 0:
            raise ValueError(f"{model} was not compared with any other model, so that nothing tells its strength")
    whole = wins.sum(0)
    pseudo = prior * (1 - np.eye(len(models)))
    found, low, high = jackknife.interval(lambda games: fitted(games + pseudo), wins, seed)
    never_won, never_lost = whole.sum(1) == 0, whole.sum(0) == 0
    if len(wins) < 2 or never_won[0] or never_lost[0]:
        low[1:], high[1:] = -math.inf, math.inf
    low[never_won], high[never_lost] = -math.inf, math.inf
    low[0] = high[0] = 0.0
    return [
        Strength(model, float(s), (float(lo), float(hi)), float(ELO * s), (float(ELO * lo), float(ELO * hi)))
        for model, s, lo, hi in zip(models, found, low, high, strict=True)
    ]


def table(m: int, a: Sequence[int], b: Sequence[int], won: ArrayLike, prompts: Sequence[Hashable]) -> Array:
    """[n_prompts, m, m]: how often the row's model beat the column's on each prompt, a tie half for each."""
    if m < 2:
        raise ValueError(f"strengths are of two models or more, got {m}")
    known, (group, first, second) = numbered(won, prompts, a, b, keep=(1, 2))
    wins = np.zeros((int(group.max()) + 1, m, m))
    np.add.at(wins, (group, first, second), known)
    np.add.at(wins, (group, second, first), 1 - known)
    return wins


def fitted(wins: Array) -> Array:
    """Log strengths [m] that make the wins [m, m] likeliest, the first 0."""
    from evalica import Winner, bradley_terry

    i, j = np.nonzero(wins)
    names = [str(k) for k in range(len(wins))]
    found = bradley_terry(
        [names[k] for k in i], [names[k] for k in j], [Winner.X] * len(i), weights=list(wins[i, j]),
        tolerance=1e-9, limit=20000,
    )  # fmt: skip
    scores = np.log(np.array([found.scores[name] for name in names], np.float64))
    return np.asarray(scores - scores[0])
