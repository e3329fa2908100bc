"""Simulated people of the picture world: shown pairs of pictures, they vote, with noise, for what they like.

What they vote on comes from the exact oracle; what leaves this file is votes alone, as people of flesh would give them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import combinations
from typing import Any

import numpy as np

from palate import kinds, randomness, sampling, views
from palate.models.contracts import Media
from palate.models.diffusion import DiffusionPolicy
from palate.prompts import rows_by_prompt
from palate.records import Preference, Sample, Score, Vote, now
from palate.training.logs import Progress
from palate.worlds import shapes
from palate.worlds.shapes import annotators

WORLD = "world:shapes"
TASTE = {"alignment": 1.0, "wholeness": 1.0, "safety": 1.0}  # what they vote for


def ask(
    policy: DiffusionPolicy,
    people: annotators.Panel,
    prompts: Sequence[str],
    *,
    k: int,
    votes: int,
    seed: int,
    sampler: Mapping[str, Any],
    say: Callable[[str], None] = print,
) -> list[Preference]:
    """k pictures of each prompt, every pair of them shown to `votes` people: preference data from what they say."""
    rows = [prompt for prompt in prompts for _ in range(k)]
    ids = [f"{prompt}/{number}" for prompt in prompts for number in range(k)]
    say(f"sampling {len(rows)} pictures of {len(prompts)} prompts")
    with closing(Progress(len(rows), 0, what="picture")) as bar:
        media = sampling.sample(policy, rows, ids, seed=seed, progress=bar.advance, **sampler)
    scores = shapes.scorer()(rows, media)
    time_of = now()
    samples = [
        Sample(name, prompt, kinds.written(picture), WORLD, time_of, seed)
        for name, prompt, picture in zip(ids, rows, media, strict=True)
    ]
    facts = [Score(name, d, float(scores[d][i]), "oracle", time_of) for i, name in enumerate(ids) for d in TASTE]
    given = cast(people, ids, rows, scores, votes, time_of)
    say(f"{len(given)} votes of {len(people.annotators)} people on {len(given) // votes} pairs")
    return list(views.preferences(samples, given, facts, by="votes", dimensions=list(TASTE)))


def cast(
    people: annotators.Panel, ids: Sequence[str], prompts: Sequence[str], scores: Mapping[str, Any], k: int, at: str
) -> list[Vote]:
    """Votes on all pairs of pictures of one prompt, sides at random."""
    left, right = _pairs(ids, prompts)
    names = [f"{ids[a]}|{ids[b]}" for a, b in zip(left, right, strict=True)]
    answers = people.votes(_rows(scores, left), _rows(scores, right), names, k)
    seats = people.seats(names)[:, :k]
    return [
        Vote(f"{name}#{seat}", ids[a], ids[b], str(answer), f"person {seat}", at)  # type: ignore[arg-type]
        for name, a, b, given, sat in zip(names, left, right, answers, seats, strict=True)
        for answer, seat in zip(given, sat, strict=True)
    ]


def _pairs(ids: Sequence[str], prompts: Sequence[str]) -> tuple[list[int], list[int]]:
    """All pairs of rows of one prompt, each the way round that its key says."""
    groups = rows_by_prompt(prompts)
    found = [pair for rows in groups.values() for pair in combinations(rows, 2)]
    sided = [(a, b) if randomness.key("side", ids[a], ids[b]) % 2 else (b, a) for a, b in found]
    return [a for a, _ in sided], [b for _, b in sided]


def _rows(scores: Mapping[str, Any], rows: Sequence[int]) -> dict[str, np.ndarray]:
    return {name: np.asarray(values)[list(rows)] for name, values in scores.items()}


def win_share(
    people: annotators.Panel, k: int, prompts: Sequence[str], media: Sequence[Media]
) -> dict[str, np.ndarray]:
    """Each picture's share of the votes it was in: all that people's comparisons say, and no number of the truth."""
    scores = shapes.scorer()(prompts, media)
    ids = [f"{prompt}/{randomness.key(picture.tobytes())}" for prompt, picture in zip(prompts, media, strict=True)]
    left, right = _pairs(ids, prompts)
    names = [f"{ids[a]}|{ids[b]}" for a, b in zip(left, right, strict=True)]
    share, _ = annotators.preference(people.votes(_rows(scores, left), _rows(scores, right), names, k))
    won, shown = np.zeros(len(media)), np.zeros(len(media))
    for a, b, p in zip(left, right, share, strict=True):
        won[a], won[b] = won[a] + p, won[b] + 1 - p
        shown[a], shown[b] = shown[a] + 1, shown[b] + 1
    return {"votes": won / np.maximum(shown, 1)}
