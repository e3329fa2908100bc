"""Views of facts: votes and scores become preferences, best and worst, splits. Facts are stored, pairs are derived.

Letters: K candidates of one prompt, D dimensions of a score. A preference [K, K] holds P(i over j): .5 a tie, NaN
unknown or incomparable, NaN on the diagonal, and 1 - prefer[i, j] at [j, i]. Nothing here is random.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palate.records import Preference, Sample, Score, Vote

Array = NDArray[np.float64]
Row = TypeVar("Row")


def prefer_from_votes(samples: Sequence[str], votes: Iterable[Vote], dimension: str = "overall") -> tuple[Array, Array]:
    """Preference [K, K] and number of judgements [K, K] of the samples with these ids.

    A tie is half a win for each. "Both bad" and skipped votes compare nothing and are not counted here; votes about
    other samples or another dimension neither. A vote id that comes twice counts once.
    """
    place = {sample: i for i, sample in enumerate(samples)}
    wins = np.zeros((len(samples), len(samples)))
    seen: set[str] = set()
    for vote in votes:
        i, j = place.get(vote.a), place.get(vote.b)
        if i is None or j is None or vote.dimension != dimension or vote.id in seen:
            continue
        seen.add(vote.id)
        share = {"a": 1.0, "b": 0.0, "tie": 0.5}.get(vote.choice)
        if share is not None:
            wins[i, j] += share
            wins[j, i] += 1 - share
    count = wins + wins.T
    return np.divide(wins, count, out=np.full_like(wins, np.nan), where=count > 0), count


def both_bad(samples: Sequence[str], votes: Iterable[Vote], dimension: str = "overall") -> NDArray[np.int64]:
    """How often each sample [K] was one of two that were both judged bad: an absolute label, not a comparison."""
    voted = {vote.id: vote for vote in votes if vote.choice == "both_bad" and vote.dimension == dimension}
    return np.array([sum(sample in (vote.a, vote.b) for vote in voted.values()) for sample in samples], np.int64)


def prefer_from_scores(scores: ArrayLike) -> Array:
    """Scores [K] -> preference [K, K]: strictly greater is preferred, equal is a tie, NaN is unknown."""
    return pareto(np.asarray(scores, np.float64)[:, None])


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


def best_and_worst(scores: ArrayLike) -> tuple[int, int] | None:
    """Places of the best and the worst of scores [K], the first of equals; NaN is left out.

    None where fewer than two are known or all are equal: such a pair would be labelled by chance.
    """
    values = np.asarray(scores, np.float64)
    known = np.flatnonzero(~np.isnan(values))
    if len(known) < 2 or values[known].min() == values[known].max():
        return None
    return int(known[values[known].argmax()]), int(known[values[known].argmin()])


def only(prefer: ArrayLike, i: int, j: int) -> Array:
    """The preference [K, K] with everything but the pair of i and j made unknown."""
    prefer = np.asarray(prefer, np.float64)
    kept = np.full_like(prefer, np.nan)
    kept[i, j], kept[j, i] = prefer[i, j], prefer[j, i]
    return kept


def held_out(prompt: str, share: float, seed: int = 0) -> bool:
    """Whether a prompt belongs to the held-out share, by its hash alone.

    The answer does not depend on which other prompts there are, so rows that are added later do not move any. Prompts
    that differ in case or spaces only go together.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie from 0 to 1, got {share}")
    text = " ".join(prompt.casefold().split())
    digest = hashlib.sha256(f"{seed}\n{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def split(rows: Iterable[Row], share: float, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Rows (anything with a `prompt`) to train on and rows held out; no prompt is in both."""
    parts: tuple[list[Row], list[Row]] = ([], [])
    for row in rows:
        prompt: Any = getattr(row, "prompt")  # noqa: B009 -- a Protocol for one attribute would say no more
        parts[held_out(prompt, share, seed)].append(row)
    return parts


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
    by: Literal["votes", "scores", "pareto"] = "votes",
    dimensions: Sequence[str] = (),
    dimension: str = "overall",
) -> Iterator[Preference]:
    """Preference rows of facts, one per prompt in order of its first sample.

    Prompts where nothing is known are left out, and samples with the same id count once.
    by: votes of `dimension`; scores of it; or Pareto dominance over `dimensions`, whose scores are written into each
    row whatever decides.
    """
    groups: dict[str, dict[str, Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.prompt, {}).setdefault(sample.id, sample)
    prompt_of = {sample: prompt for prompt, group in groups.items() for sample in group}
    votes_of = _grouped((prompt_of.get(vote.a), vote) for vote in votes)
    scores_of = _grouped((prompt_of.get(score.sample), score) for score in scores)
    for prompt, group in groups.items():
        ids = list(group)
        counts: Array | None = None
        if by == "votes":
            prefer, counts = prefer_from_votes(ids, votes_of.get(prompt, ()), dimension)
        else:
            judged = [dimension] if by == "scores" else dimensions
            prefer = pareto(score_table(ids, scores_of.get(prompt, ()), judged))
        if np.isnan(prefer).all():
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
        )


Fact = TypeVar("Fact")
Key = TypeVar("Key", bound=Hashable)


def _grouped(facts: Iterable[tuple[Key, Fact]]) -> Mapping[Key, list[Fact]]:
    groups: dict[Key, list[Fact]] = {}
    for key, fact in facts:
        groups.setdefault(key, []).append(fact)
    return groups
