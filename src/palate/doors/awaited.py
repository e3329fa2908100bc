"""What has been said of a batch of comparisons, and what is still to be said. No torch: the studio waits here.

What is counted is the project's first question; the others are kept beside as aspects.
"""

from __future__ import annotations

from collections.abc import Iterator

from palate.records import Comparison, Ranking, Vote
from palate.store import Store


def question(store: Store) -> str:
    """The dimension that is counted."""
    return next(iter(store.settings.questions))


def missing(store: Store, batch: str) -> list[tuple[Comparison, int]]:
    """The comparisons of a batch that lack answers, and how many each lacks.

    A skip is an answer: who skips is not asked again, and perhaps nobody else is there. A repeat is none.
    """
    given: dict[str, set[str]] = {}
    answers: list[Vote | Ranking] = [*store.votes(question(store)), *store.rankings()]
    for answer in answers:
        if not answer.repeat:
            given.setdefault(answer.comparison, set()).add(answer.source)
    lacks = ((c, c.wanted - len(given.get(c.id, ()))) for c in store.comparisons(batch=batch))
    return [(comparison, n) for comparison, n in lacks if n > 0]


def lacking(store: Store, batch: str) -> int:
    """How many answers a batch still lacks."""
    return sum(n for _, n in missing(store, batch))


def votes_of(store: Store, batch: str) -> Iterator[tuple[Vote, float]]:
    """The judgements of a batch, and how much the first sample of each won: 1, 0 or, of a tie, a half."""
    asked = {comparison.id for comparison in store.comparisons(batch=batch)}
    for vote in store.votes(question(store)):
        share = {"a": 1.0, "b": 0.0, "tie": 0.5}.get(vote.choice)
        if share is not None and vote.comparison in asked and not vote.repeat:
            yield vote, share
