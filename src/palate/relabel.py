"""Preferences judged anew, by any scorer instead of the people or the model that judged them (AI feedback).

    change = Relabel(scorer)           # a recipe's `data.relabel`
    row = change(row, media)           # before it is trained on

As in Diffusion-DPO (2311.12908, section 5.3: pairs relabelled by PickScore, HPS or CLIP), RankDPO (2410.18013, section
3.2: five scorers at once) and VideoAlign (2501.13918: its reward model).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from palate import views
from palate.models.contracts import Scorer
from palate.records import Preference

Array = NDArray[np.float64]


class Relabel:
    """A change of a preference row: its scores by the scorer, and its preferences by their sum.

    scorer: `{dimension: [n]}`, each already times its weight. temperature: None, the greater sum is preferred and an
    equal one is a tie; else P(i over j) = sigma((sum_i - sum_j) / temperature), after Bradley and Terry.

    A medium that is missing or cannot be judged in every dimension is compared with none. What was known of the row
    before is gone: its preferences, votes and scores, and its aspects, which would say one thing and the new labels
    another; its id stays, and with it its draws.
    """

    def __init__(self, scorer: Scorer, temperature: float | None = None) -> None:
        if temperature is not None and temperature <= 0:
            raise ValueError(f"the temperature of relabelled preferences must be positive, got {temperature}")
        self._scorer, self.temperature = scorer, temperature

    def __call__(self, row: Preference, media: Sequence[Any]) -> Preference:
        """media: K, decoded, None where there is none."""
        return self.labelled(row, *self.judged(row.prompt, media))

    def labelled(self, row: Preference, dimensions: tuple[str, ...], scores: Array) -> Preference:
        """The row with preferences of these scores [K, D]."""
        prefer = preferred(scores.sum(1), self.temperature)
        new = {"prefer": prefer.tolist(), "votes": (), "scores": scores.tolist(), "dimensions": dimensions}
        return replace(row, **new, aspects=(), id=row.id)

    def judged(self, prompt: str, media: Sequence[Any]) -> tuple[tuple[str, ...], Array]:
        """Names [D] and scores [K, D] of K media, NaN where there is none; no names where there is none at all."""
        there = [place for place, medium in enumerate(media) if medium is not None]
        given = self._scorer([prompt] * len(there), [media[place] for place in there]) if there else {}
        scores = np.full((len(media), len(given)), np.nan)
        for column, values in enumerate(given.values()):
            scores[there, column] = np.asarray(values, np.float64)
        return tuple(given), scores


def preferred(scores: Array, temperature: float | None = None) -> Array:
    """Scores [K] -> P(i over j) [K, K], NaN on the diagonal and where a score is NaN; temperature as in `Relabel`."""
    if temperature is None:
        return views.prefer_from_scores(scores)
    gap = (scores[:, None] - scores[None]) / temperature
    # Both triangles from one number, so that they add up to 1, and no exponential that can overflow.
    soft = np.where(gap >= 0, 1 / (1 + np.exp(-np.abs(gap))), 1 - 1 / (1 + np.exp(-np.abs(gap))))
    np.fill_diagonal(soft, np.nan)
    return soft
