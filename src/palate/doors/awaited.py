"""What has been said of a batch of comparisons, and what is still to be said. No torch: the studio waits here."""

from __future__ import annotations

from collections.abc import Iterator

from palate.records import Comparison, Ranking, Vote
from palate.store import Store


def missing(store: Store, batch: str) -> list[tuple[Comparison, int]]:
    """The comparisons of a batch that lack judgements, and how many each lacks; a skip or a repeat is none."""
    given: dict[str, set[str]] = {}
    judgements: list[Vote | Ranking] = [*store.votes(), *store.rankings()]
    for judgement in judgements:
        skipped = isinstance(judgement, Vote) and judgement.choice == "skip"
        if not skipped and not judgement.repeat:
            given.setdefault(judgement.comparison, set()).add(judgement.source)
    lacks = ((c, c.wanted - len(given.get(c.id, ()))) for c in store.comparisons(batch=batch))
    return [(comparison, n) for comparison, n in lacks if n > 0]


def lacking(store: Store, batch: str) -> int:
    """How many judgements a batch still lacks."""
    return sum(n for _, n in missing(store, batch))


def votes_of(store: Store, batch: str) -> Iterator[tuple[Vote, float]]:
    """The judgements of a batch, and how much the first sample of each won: 1, 0 or, of a tie, a half."""
    asked = {comparison.id for comparison in store.comparisons(batch=batch)}
    for vote in store.votes():
        share = {"a": 1.0, "b": 0.0, "tie": 0.5}.get(vote.choice)
        if share is not None and vote.comparison in asked and not vote.repeat:
            yield vote, share
