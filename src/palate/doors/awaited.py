"""What has been said of a batch of comparisons, and what is still to be said. No torch: the studio waits here.

What is counted is the project's first question; the others are kept beside as aspects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain

from palate import views
from palate.records import Comparison, Preference, Ranking, Vote
from palate.store import Store


def question(store: Store) -> str:
    """The dimension that is counted."""
    return next(iter(store.settings.questions))


def asked_of(store: Store, batch: str) -> list[Comparison]:
    """The comparisons of a batch that are asked for what raters think: a known pair tests them, and counts nowhere."""
    return [comparison for comparison in store.comparisons(batch=batch) if not comparison.expected]


def missing(store: Store, batch: str) -> list[tuple[Comparison, int]]:
    """The comparisons of a batch that lack answers, and how many each lacks.

    A skip is an answer: who skips is not asked again, and perhaps nobody else is there. A repeat is none.
    """
    given: dict[str, set[str]] = {}
    answers: list[Vote | Ranking] = [*store.votes(question(store)), *store.rankings(question(store))]
    for answer in answers:
        if not answer.repeat:
            given.setdefault(answer.comparison, set()).add(answer.source)
    lacks = ((c, c.wanted - len(given.get(c.id, ()))) for c in asked_of(store, batch))
    return [(comparison, n) for comparison, n in lacks if n > 0]


def lacking(store: Store, batch: str) -> int:
    """How many answers a batch still lacks."""
    return sum(n for _, n in missing(store, batch))


def votes_of(store: Store, batch: str) -> Iterator[tuple[Vote, float]]:
    """The judgements of a batch, and how much the first sample of each won: 1, 0 or, of a tie, a half."""
    asked, dimension = {comparison.id for comparison in asked_of(store, batch)}, question(store)
    for vote in chain(store.votes(dimension), *map(views.as_votes, store.rankings(dimension))):
        if vote.comparison in asked and not vote.repeat:
            for _, _, share in views.outcomes(vote):
                yield vote, share


def preferences(store: Store, batches: Iterable[str]) -> list[Preference]:
    """What was said of some batches, a row a prompt, with its media's bytes: it needs no project beside it."""
    shown = {c.id: c.samples for batch in batches for c in asked_of(store, batch)}
    wanted = {name for together in shown.values() for name in together}
    votes = [vote for vote in store.votes() if vote.comparison in shown]
    rankings = [ranking for ranking in store.rankings() if ranking.comparison in shown]
    samples = [sample for sample in store.samples() if sample.id in wanted]
    others = list(store.settings.questions)[1:]
    rows = views.preferences(samples, votes, rankings=rankings, dimension=question(store), aspects=others)
    return [whole(store, row) for row in rows]


def whole(store: Store, row: Preference) -> Preference:
    """The row with its media's bytes in it."""
    media = [m if m is None else replace(m, bytes=store.read_media(m), path=None) for m in row.media]
    return replace(row, media=tuple(media))
