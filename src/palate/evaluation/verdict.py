"""Two or more models, judged: who beats whom, by whom, how surely, in what; as the numbers that result.json holds.

Models are numbered from 0, the one to beat. A judge's outcomes are of pairs of models (i, j), i < j: 1 where j won.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from palate.evaluation import best_of_n, diversity, guard, strengths, win_rate
from palate.evaluation.categories import by_category, holm
from palate.evaluation.compare import Arm

Array = NDArray[np.float64]
JUDGE, HELD_OUT, REWARD = "judge", "held out", "training reward"  # what a judge is to the models judged


@dataclass(frozen=True)
class Outcomes:
    """Of one pair of models by one judge: won [n], 1 the second, 0 the first, .5 a tie, NaN none."""

    won: Array
    prompts: Sequence[str]
    categories: Sequence[str]


Judged = Mapping[str, Mapping[tuple[int, int], Outcomes]]  # by judge, then by pair of models


def by_scores(arms: Sequence[Arm], judges: Sequence[str], categories: Sequence[str]) -> Judged:
    """Outcomes of all pairs by each score. categories [n]: of each sample's prompt."""
    return {
        judge: {
            (i, j): Outcomes(
                win_rate.outcomes(arms[j].scores[judge], arms[i].scores[judge]), arms[i].prompts, categories
            )
            for i, j in combinations(range(len(arms)), 2)
        }
        for judge in judges
    }


def numbers(models: Sequence[str], judged: Judged, roles: Mapping[str, str], *, seed: int = 0) -> dict[str, Any]:
    """What can be said of outcomes alone: verdicts of all pairs with Holm's p-values over all of them, Bradley-Terry
    strengths of three models or more, categories of each model against the first."""
    verdicts = [
        {"judge": judge, "role": roles.get(judge, JUDGE), "a": models[i], "b": models[j]}
        | asdict(win_rate.win_rate_of(of.won, of.prompts, seed=seed))
        for judge, i, j, of in _known(judged)
    ]
    for verdict, p in zip(verdicts, holm([verdict["p"] for verdict in verdicts]), strict=True):
        verdict["p_holm"] = p
    found: dict[str, Any] = {"verdicts": verdicts}
    if len(models) > 2:
        found["strengths"] = {judge: _strengths(models, pairs, seed) for judge, pairs in judged.items()}
    found["categories"] = [
        {"judge": judge, "a": models[i], "b": models[j], "category": row.category} | asdict(replace(row.wins, p=row.p))
        for judge, i, j, of in _known(judged)
        if i == 0 and len(set(of.categories) - {""}) > 1
        for row in by_category(of.won, of.prompts, of.categories, seed=seed)
    ]
    return found


def _known(judged: Judged) -> Iterator[tuple[str, int, int, Outcomes]]:
    for judge, pairs in judged.items():
        for (i, j), of in pairs.items():
            if not np.isnan(of.won).all():
                yield judge, i, j, of


def _strengths(models: Sequence[str], pairs: Mapping[tuple[int, int], Outcomes], seed: int) -> list[dict[str, Any]]:
    known = [(i, j, of) for (i, j), of in pairs.items() if not np.isnan(of.won).all()]
    if len({k for i, j, _ in known for k in (i, j)}) < len(models):
        return []
    a = [j for _, j, of in known for _ in of.won]
    b = [i for i, _, of in known for _ in of.won]
    prompts = [prompt for _, _, of in known for prompt in of.prompts]
    won = np.concatenate([of.won for _, _, of in known])
    return [asdict(strength) for strength in strengths.strengths(models, a, b, won, prompts, seed=seed)]


def beside(
    models: Sequence[str],
    arms: Sequence[Arm],
    roles: Mapping[str, Mapping[str, str]],
    *,
    embed: diversity.Embed | None = diversity.pixels,
    seed: int = 0,
) -> dict[str, Any]:
    """What each model is against the first beside winning: best-of-n equivalence, diversity and drift, the guard.

    roles: of each judge by the models trained on it: {model: {judge: role}}. embed: of media for distances, None for
    no such measure, as for media it cannot see.
    """
    base, found = arms[0], []
    for model, arm in zip(models[1:], arms[1:], strict=True):
        spread = _spread(base, arm, embed, seed)
        looked = _looked(base, arm, roles.get(model, {}), embed if spread else None)
        entry: dict[str, Any] = {"model": model, "best_of_n": {}, "guard": looked}
        for judge, scores in arm.scores.items():
            worth = best_of_n.equivalence(base.scores[judge], scores, base.prompts, seed=seed)
            if worth is not None:
                entry["best_of_n"][judge] = asdict(worth)
        if spread:
            entry["diversity"] = asdict(spread)
        found.append(entry)
    return {"against_first": found}


def _spread(base: Arm, arm: Arm, embed: diversity.Embed | None, seed: int) -> diversity.Diversity | None:
    if embed is None:
        return None
    try:
        return diversity.compare(base.media, arm.media, base.prompts, embed=embed, seed=seed)
    except TypeError:  # media of a kind that has no such embedding
        return None


def _looked(base: Arm, arm: Arm, roles: Mapping[str, str], embed: diversity.Embed | None) -> dict[str, Any] | None:
    """The guard's look, None where no reward of its training is among the judges."""
    pairs = {judge: (base.scores[judge], scores) for judge, scores in arm.scores.items()}
    rewards = {judge: pair for judge, pair in pairs.items() if roles.get(judge) == REWARD}
    if not rewards:
        return None
    held = {judge: pair for judge, pair in pairs.items() if judge not in rewards}
    spread = None
    if embed is not None:
        spread = tuple(diversity.spread(embed(each.media), each.prompts)[0] for each in (base, arm))
    return asdict(guard.look(rewards, held, base.prompts, diversity=spread))  # type: ignore[arg-type]
