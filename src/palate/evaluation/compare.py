"""Two models on the same prompts from the same noise, scored by the same judges.

Every pair shares its seed, so that what differs is the model; prompts are the unit of chance, since pictures of one
prompt stand or fall together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from palate import sampling
from palate.evaluation import win_rate
from palate.models.contracts import Media, Scorer


@dataclass(frozen=True)
class Arm:
    """What one model made of m prompts, n samples each: prompts and media [m*n], scores {dimension: [m*n]}."""

    prompts: list[str]
    media: Sequence[Media]
    scores: dict[str, np.ndarray]

    def reward(self, weights: Mapping[str, float]) -> np.ndarray:
        """[m*n], the weighted sum of the scores. Raises ValueError naming a dimension that no scorer gave."""
        missing = [name for name in weights if name not in self.scores]
        if missing:
            raise ValueError(f"no scorer gives {missing[0]!r}; it gives {', '.join(sorted(self.scores))}")
        return np.sum([weight * self.scores[name] for name, weight in weights.items()], axis=0)


def run_arm(
    policy: Any,
    prompts: Sequence[str],
    scorer: Scorer,
    *,
    n: int,
    seed: int,
    settings: Mapping[str, Any],
    progress: sampling.Progress | None = None,
) -> Arm:
    """Samples and scores. A sample's noise depends on (seed, prompt, number) alone, whatever the model."""
    rows = [prompt for prompt in prompts for _ in range(n)]
    ids = [f"judging/{prompt}/{number}" for prompt in prompts for number in range(n)]
    media = sampling.sample(policy, rows, ids, seed=seed, progress=progress, **settings)
    return Arm(rows, media, {name: np.asarray(values, float) for name, values in scorer(rows, media).items()})


@dataclass(frozen=True)
class Judgement:
    """Tuned against base: the verdict by the weighted reward, and each score (and the reward) compared alone.

    Without weights there is no reward and no such verdict, nor where no pair's reward is known.
    """

    verdict: win_rate.WinRate | None
    dimensions: dict[str, win_rate.Comparison]


def judge(base: Arm, tuned: Arm, weights: Mapping[str, float] | None, *, tie: float = 0.0, seed: int = 0) -> Judgement:
    """How often the tuned model's sample has the higher reward. Rewards no further apart than `tie` are a tie.

    weights: of the scores in the reward; None adds nothing up, since scores of different kinds have no common unit.
    """
    if weights is None:
        return Judgement(None, win_rate.compare(tuned.scores, base.scores, base.prompts, seed=seed))
    before, after = base.reward(weights), tuned.reward(weights)
    won = np.where(np.abs(after - before) <= tie, 0.5, after > before)
    won[np.isnan(after - before)] = np.nan
    return Judgement(
        verdict=None if np.isnan(won).all() else win_rate.win_rate_of(won, base.prompts, seed=seed),
        dimensions=win_rate.compare(
            {"reward": after, **tuned.scores}, {"reward": before, **base.scores}, base.prompts, seed=seed
        ),
    )
