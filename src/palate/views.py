"""Views of facts: votes and scores become preferences and splits. Facts are stored, pairs are derived.

Letters: K candidates of one prompt, D dimensions of a score. A preference [K, K] holds P(i over j): .5 a tie, NaN
unknown or incomparable, NaN on the diagonal, and 1 - prefer[i, j] at [j, i]. Nothing here is random.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, combinations
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palate.records import (
    OVERALL,
    Aspect,
    Choice,
    Comparison,
    Matrix,
    Medium,
    Preference,
    Ranking,
    Retraction,
    Sample,
    Score,
    Vote,
)

Array = NDArray[np.float64]


Labels = Literal["soft", "majority"]


def prefer_from_votes(
    samples: Sequence[str],
    votes: Iterable[Vote],
    dimension: str = OVERALL,
    *,
    rankings: Iterable[Ranking] = (),
    labels: Labels = "soft",
    at_least: int = 1,
) -> tuple[Array, Array]:
    """Preference [K, K] and number of judgements [K, K] of the samples with these ids.

    A tie is half a win for each. "Both bad" and skipped votes compare nothing and are not counted here; votes about
    other samples or another dimension, and repeats, neither. An id that comes twice counts once. A ranking is one
    judgement of each pair in it. labels: `soft` is the share of judgements, `majority` the side with more of them, .5
    where they are even. at_least: a pair with fewer judgements is unknown.
    """
    place = {sample: i for i, sample in enumerate(samples)}
    wins = np.zeros((len(samples), len(samples)))
    for i, j, share in _shares(place, votes, rankings, dimension):
        wins[i, j] += share
        wins[j, i] += 1 - share
    count = wins + wins.T
    count[count < at_least] = 0
    prefer = np.divide(wins, count, out=np.full_like(wins, np.nan), where=count > 0)
    return (prefer if labels == "soft" else majority(prefer)), count


def _shares(
    place: Mapping[str, int], votes: Iterable[Vote], rankings: Iterable[Ranking], dimension: str
) -> Iterator[tuple[int, int, float]]:
    """i, j and what one judgement says of i over j, of samples that have a place."""
    seen: set[str] = set()
    for judgement in chain[Vote | Ranking](votes, rankings):
        if judgement.dimension != dimension or judgement.repeat or judgement.id in seen:
            continue
        seen.add(judgement.id)
        for a, b, share in outcomes(judgement):
            if a in place and b in place:
                yield place[a], place[b], share


def outcomes(judgement: Vote | Ranking) -> Iterator[tuple[str, str, float]]:
    """Two samples and how much the first won, 1, 0 or, of a tie, .5; of all pairs that a judgement says something of.

    The first of a ranking's two is nowhere the worse one.
    """
    if isinstance(judgement, Vote):
        share = {"a": 1.0, "b": 0.0, "tie": 0.5}.get(judgement.choice)
        if share is not None:
            yield judgement.a, judgement.b, share
        return
    ranked = [(level, sample) for level, group in enumerate(judgement.groups) for sample in group]
    for (level, a), (other, b) in combinations(ranked, 2):
        yield a, b, 1.0 if level < other else 0.5


def as_votes(ranking: Ranking) -> Iterator[Vote]:
    """The pairs of a ranking as votes, without sides and seconds."""
    for a, b, share in outcomes(ranking):
        choice: Choice = "tie" if share == 0.5 else "a" if share > 0.5 else "b"
        of = Vote(f"{ranking.id}/{a}/{b}", a, b, choice, ranking.source, ranking.time, ranking.dimension)
        yield replace(of, comparison=ranking.comparison, repeat=ranking.repeat)


def majority(prefer: ArrayLike) -> Array:
    """Preference -> what most judgements say of each pair: 1, 0, or .5 where they are even; NaN stays."""
    share = np.asarray(prefer, np.float64)
    return np.where(
        np.isnan(share), np.nan, np.where(np.abs(share - 0.5) < 1e-9, 0.5, (share > 0.5).astype(np.float64))
    )


def prefer_from_scores(scores: ArrayLike) -> Array:
    """Scores [K] -> preference [K, K]: strictly greater is preferred, equal is a tie, NaN is unknown."""
    return pareto(np.asarray(scores, np.float64)[:, None])


def prefer_from_table(scores: ArrayLike) -> tuple[Array, Array]:
    """Each judge's scores, or ranks with the sign turned, [N, K] -> preference [K, K] and judgements behind it [K, K].

    The preference is the share of judges who score i higher, equal scores half a win for each.
    """
    values = np.asarray(scores, np.float64)
    if values.ndim != 2:
        raise ValueError(f"scores must be [N, K], got shape {values.shape}")
    each = np.stack([prefer_from_scores(row) for row in values])
    count = (~np.isnan(each)).sum(0).astype(np.float64)
    wins = np.nansum(each, 0)
    return np.divide(wins, count, out=np.full_like(wins, np.nan), where=count > 0), count


def pareto(scores: ArrayLike) -> Array:
    """Scores [K, D] -> preference [K, K]: 1 where i dominates j, at least as good in every dimension and better in one.

    Equal in all is a tie; better here and worse there is incomparable (NaN), and so is a pair with a NaN anywhere.
    """
    values = np.asarray(scores, np.float64)
    if values.ndim != 2:
        raise ValueError(f"scores must be [K, D], got shape {values.shape}")
    better = (values[:, None] > values[None]).any(-1)
    worse = better.T
    prefer = np.select([better & worse, better, worse], [np.nan, 1.0, 0.0], 0.5)
    unknown = np.isnan(values).any(-1)
    prefer[unknown] = np.nan
    prefer[:, unknown] = np.nan
    np.fill_diagonal(prefer, np.nan)
    return prefer


def preference_of(row: Preference, dimension: str = OVERALL) -> Preference | None:
    """The row with what is known of one dimension in `prefer` and `votes`; None if nothing is.

    dimension: `overall`, the name of one of its aspects, or else of its scores, which are then compared.
    """
    if dimension == OVERALL:
        return row
    for aspect in row.aspects:
        if aspect.dimension == dimension:
            return replace(row, prefer=aspect.prefer, votes=aspect.votes)
    if dimension not in row.dimensions:
        return None
    column = row.dimensions.index(dimension)
    known = [scores[column] if there else np.nan for scores, there in zip(row.scores, row.mask, strict=True)]
    return replace(row, prefer=prefer_from_scores(known).tolist(), votes=())


def says_something(row: Preference) -> bool:
    """Whether anything is known of the row: a pair, overall or in some aspect, or a score."""
    tables = (row.prefer, *(aspect.prefer for aspect in row.aspects), row.scores)
    return any(not math.isnan(value) for table in tables for line in table for value in line)


def without(row: Preference, gone: Sequence[bool]) -> Preference:
    """The row with some of its candidates [K] masked: nothing is known of them any more."""

    def cut(table: Matrix, empty: float) -> Matrix:
        return tuple(
            tuple(empty if gone[i] or gone[j] else value for j, value in enumerate(line))
            for i, line in enumerate(table)
        )

    return replace(
        row,
        media=tuple(None if lost else medium for medium, lost in zip(row.media, gone, strict=True)),
        mask=tuple(exists and not lost for exists, lost in zip(row.mask, gone, strict=True)),
        prefer=cut(row.prefer, math.nan),
        votes=cut(row.votes, 0.0),
        scores=tuple(tuple(math.nan if lost else s for s in line) for line, lost in zip(row.scores, gone, strict=True)),
        aspects=tuple(Aspect(a.dimension, cut(a.prefer, math.nan), cut(a.votes, 0.0)) for a in row.aspects),
    )


def merged(rows: Iterable[Preference], most: int = 64) -> Iterator[Preference]:
    """Rows of one prompt that follow each other as one row, of at most so many candidates.

    A medium that comes again is one candidate. A pair judged in several rows has their mean preference, weighed by
    votes. Rows of different weights, or with other dimensions of scores, stay apart.
    """
    group: list[Preference] = []
    for row in rows:
        alike = group and (row.prompt, row.weight, row.dimensions) == (
            group[0].prompt,
            group[0].weight,
            group[0].dimensions,
        )
        if group and (not alike or sum(len(part) for part in group) + len(row) > most):
            yield _merge(group)
            group = []
        group.append(row)
    if group:
        yield _merge(group)


def _merge(rows: Sequence[Preference]) -> Preference:
    if len(rows) == 1:
        return rows[0]
    place: dict[Medium, int] = {}
    where: list[list[int | None]] = []  # for each row, which merged candidate each of its own is
    source: dict[int, tuple[str, int | None]] = {}
    scores: dict[int, tuple[float, ...]] = {}
    for row in rows:
        where.append([])
        for k, medium in enumerate(row.media):
            i = None if medium is None or not row.mask[k] else place.setdefault(medium, len(place))
            where[-1].append(i)
            if i is not None:
                source.setdefault(i, (row.sources[k], row.seeds[k]))
                if i not in scores or all(math.isnan(s) for s in scores[i]):
                    scores[i] = row.scores[k]
    names = list(dict.fromkeys(aspect.dimension for row in rows for aspect in row.aspects))

    def told(name: str) -> Iterator[tuple[Matrix, Matrix, Sequence[int | None]]]:
        for row, at in zip(rows, where, strict=True):
            yield from ((a.prefer, a.votes, at) for a in row.aspects if a.dimension == name)

    judged = {name: _added(told(name), len(place)) for name in names}
    prefer, votes = _added([(row.prefer, row.votes, at) for row, at in zip(rows, where, strict=True)], len(place))
    return Preference(
        rows[0].prompt,
        tuple(place),
        prefer.tolist(),
        votes=votes.tolist(),
        scores=tuple(scores[i] for i in range(len(place))),
        dimensions=rows[0].dimensions,
        weight=rows[0].weight,
        sources=tuple(source[i][0] for i in range(len(place))),
        seeds=tuple(source[i][1] for i in range(len(place))),
        aspects=tuple(Aspect(name, p.tolist(), v.tolist()) for name, (p, v) in judged.items()),
        where=rows[0].where,
    )


def _added(tables: Iterable[tuple[Matrix, Matrix, Sequence[int | None]]], k: int) -> tuple[Array, Array]:
    """Preferences and votes of several rows, each with the places of its candidates among K, as one [K, K]."""
    wins, count = np.zeros((k, k)), np.zeros((k, k))
    said, rows = np.zeros((k, k)), np.zeros((k, k))  # where nobody's votes stand behind it, each row speaks once
    for prefer, votes, at in tables:
        for a, i in enumerate(at):
            for b, j in enumerate(at):
                if i is not None and j is not None and i != j and not math.isnan(prefer[a][b]):
                    wins[i, j] += prefer[a][b] * votes[a][b]
                    count[i, j] += votes[a][b]
                    said[i, j] += prefer[a][b]
                    rows[i, j] += 1
    mean = np.divide(said, rows, out=np.full_like(said, np.nan), where=rows > 0)
    return np.divide(wins, count, out=mean, where=count > 0), count


def held_out(prompts: Sequence[str], share: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Places of rows to train on and of rows held out, by their prompts: no prompt, however spelt, is in both.

    A share above 0 holds out one prompt at least, and one is always left to train on. Which ones is in their hashes:
    in another order they are the same. Raises ValueError for a share that is none.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie from 0 to 1, got {share}")
    spelt: dict[str, str] = {}  # of several spellings the least speaks for all
    for prompt in prompts:
        spelt[folded(prompt)] = min(prompt, spelt.get(folded(prompt), prompt))
    order = sorted(spelt, key=lambda name: (_hash(seed, "held out", spelt[name]), spelt[name]))
    count = min(max(round(share * len(order)), 1), len(order) - 1) if share > 0 else 0
    aside = set(order[:count])
    parts: tuple[list[int], list[int]] = ([], [])
    for row, prompt in enumerate(prompts):
        parts[folded(prompt) in aside].append(row)
    return parts


def overlap(prompts: Iterable[str], others: Iterable[str]) -> list[str]:
    """Those of the prompts that are also among the others, however spelt."""
    known = {folded(prompt) for prompt in others}
    return [prompt for prompt in prompts if folded(prompt) in known]


def folded(prompt: str) -> str:
    """A prompt without what makes no other of it: case and extra spaces."""
    return " ".join(prompt.casefold().split())


def _hash(*parts: object) -> int:
    """As `randomness.key`, which stands a floor above: the same prompts were always held out."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest(), "little")


def score_table(samples: Sequence[str], scores: Iterable[Score], dimensions: Sequence[str]) -> Array:
    """Scores [K, D] of the samples with these ids, NaN where there is none; of several, the latest by time."""
    rows, columns = ({name: i for i, name in enumerate(names)} for names in (samples, dimensions))
    table = np.full((len(samples), len(dimensions)), np.nan)
    for score in sorted(scores, key=lambda s: s.time):
        if score.sample in rows and score.dimension in columns:
            table[rows[score.sample], columns[score.dimension]] = score.value
    return table


def preferences(
    samples: Iterable[Sample],
    votes: Iterable[Vote] = (),
    scores: Iterable[Score] = (),
    *,
    rankings: Iterable[Ranking] = (),
    comparisons: Iterable[Comparison] = (),
    retractions: Iterable[Retraction] = (),
    by: Literal["votes", "scores", "pareto"] = "votes",
    dimensions: Sequence[str] = (),
    dimension: str = OVERALL,
    aspects: Sequence[str] = (),
    labels: Labels = "soft",
    at_least: int = 1,
) -> Iterator[Preference]:
    """Preference rows of facts, one per prompt in order of its first sample.

    Prompts where nothing is known are left out, and samples with the same id count once. Not counted is what was said
    of a known pair, one of the comparisons with an expected winner, and what was taken back.
    by: votes and rankings of `dimension`; scores of it; or Pareto dominance over `dimensions`, whose scores are written
    into each row whatever decides. aspects: further dimensions of the votes, which are kept beside. labels, at_least:
    as of `prefer_from_votes`.
    """
    groups: dict[str, dict[str, Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.prompt, {}).setdefault(sample.id, sample)
    prompt_of = {sample: prompt for prompt, group in groups.items() for sample in group}
    out = {retraction.of for retraction in retractions}
    known = {comparison.id for comparison in comparisons if comparison.expected}
    votes_of = _grouped((prompt_of.get(v.a), v) for v in votes if v.id not in out and v.comparison not in known)
    ranked = (r for r in rankings if r.id not in out and r.comparison not in known)
    rankings_of = _grouped((prompt_of.get(ranking.groups[0][0]), ranking) for ranking in ranked)
    scores_of = _grouped((prompt_of.get(score.sample), score) for score in scores)

    def voted(prompt: str, name: str) -> tuple[Array, Array]:
        given, told = votes_of.get(prompt, ()), rankings_of.get(prompt, ())
        ids = list(groups[prompt])
        return prefer_from_votes(ids, given, name, rankings=told, labels=labels, at_least=at_least)

    for prompt, group in groups.items():
        ids = list(group)
        counts: Array | None = None
        if by == "votes":
            prefer, counts = voted(prompt, dimension)
        else:
            judged = [dimension] if by == "scores" else dimensions
            prefer = pareto(score_table(ids, scores_of.get(prompt, ()), judged))
        told = {name: voted(prompt, name) for name in aspects}
        beside = [Aspect(name, p.tolist(), n.tolist()) for name, (p, n) in told.items() if n.any()]
        if np.isnan(prefer).all() and not beside:
            continue
        yield Preference(
            prompt=prompt,
            media=tuple(group[i].medium for i in ids),
            prefer=prefer.tolist(),
            votes=() if counts is None else counts.tolist(),
            scores=score_table(ids, scores_of.get(prompt, ()), dimensions).tolist(),
            dimensions=tuple(dimensions),
            sources=tuple(group[i].source for i in ids),
            seeds=tuple(group[i].seed for i in ids),
            aspects=tuple(beside),
        )


Fact = TypeVar("Fact")
Key = TypeVar("Key", bound=Hashable)


def _grouped(facts: Iterable[tuple[Key, Fact]]) -> Mapping[Key, list[Fact]]:
    groups: dict[Key, list[Fact]] = {}
    for key, fact in facts:
        groups.setdefault(key, []).append(fact)
    return groups
