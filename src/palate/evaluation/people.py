"""What people said of pairs of models: the majority of each pair's votes, and every vote for itself.

The majority is one outcome a pair, as in Diffusion-DPO's study (arXiv:2311.12908, section 5.1): the side with more of
its votes, ties half for each; .5 where neither has more. Votes are also counted one by one; their interval is for other
prompts and other raters (`clusters.two_way`). "Both bad" compares nothing and is left out, as are skips.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from palate import views
from palate.evaluation import clusters, win_rate
from palate.evaluation.verdict import Outcomes
from palate.records import OVERALL, Vote


@dataclass(frozen=True)
class Shown:
    """A pair that people were shown: samples of the models i < j, of a prompt and its category."""

    i: int
    j: int
    samples: tuple[str, str]
    prompt: str
    category: str = ""


def majorities(shown: Sequence[Shown], votes: Iterable[Vote], dimension: str = OVERALL) -> dict[Any, Outcomes]:
    """Outcomes of each pair of models, one a shown pair; NaN where nobody compared them yet."""
    of_pair = _by_pair(votes, dimension)
    found: dict[tuple[int, int], list[tuple[float, Shown]]] = {}
    for pair in shown:
        prefer, _ = views.prefer_from_votes(pair.samples, of_pair.get(frozenset(pair.samples), ()), dimension)
        found.setdefault((pair.i, pair.j), []).append((float(views.majority(prefer)[1, 0]), pair))
    return {
        models: Outcomes(np.array([won for won, _ in rows]), [p.prompt for _, p in rows], [p.category for _, p in rows])
        for models, rows in found.items()
    }


def each_vote(
    shown: Sequence[Shown], votes: Iterable[Vote], models: Sequence[str], dimension: str = OVERALL
) -> list[dict[str, Any]]:
    """A verdict of each pair of models from single votes, those that are neither repeats nor `both_bad` nor skips."""
    of_pair = _by_pair(votes, dimension)
    rows: dict[tuple[int, int], list[tuple[float, str, str]]] = {}
    for pair in shown:
        for vote in of_pair.get(frozenset(pair.samples), ()):
            share = {"a": 1.0, "b": 0.0, "tie": 0.5}.get(vote.choice)
            if share is not None:
                won = share if vote.a == pair.samples[1] else 1 - share
                rows.setdefault((pair.i, pair.j), []).append((won, pair.prompt, vote.source))
    found = []
    for (i, j), given in rows.items():
        outcomes = [won for won, _, _ in given]
        prompts, raters = [prompt for _, prompt, _ in given], [rater for _, _, rater in given]
        _, (low, high) = clusters.two_way(outcomes, prompts, raters)
        counted = replace(win_rate.win_rate_of(outcomes, prompts), ci95=(max(low, 0.0), min(high, 1.0)))
        found.append({"a": models[i], "b": models[j], "raters": len(set(raters)), **asdict(counted)})
    return found


def _by_pair(votes: Iterable[Vote], dimension: str) -> Mapping[frozenset[str], list[Vote]]:
    """The votes to be counted by the two samples that they compare."""
    found: dict[frozenset[str], list[Vote]] = {}
    for vote in votes:
        if vote.dimension == dimension and not vote.repeat:
            found.setdefault(frozenset((vote.a, vote.b)), []).append(vote)
    return found
