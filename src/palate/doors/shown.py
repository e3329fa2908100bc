"""What raters are shown together: which of a prompt's samples become a comparison, and what that is called."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

from palate.records import Comparison


def comparisons(
    prompt: str, names: Sequence[str], *, batch: str, wanted: int, show: int | None = None, most: int | None = None
) -> Iterator[Comparison]:
    """Comparisons of samples of one prompt, each to be judged by so many raters.

    show: None for all pairs; else groups of at most so many, to be ranked. most: so many, those first in an order keyed
    by what they are; None for all.
    """
    together: Iterable[Sequence[str]] = combinations(names, 2) if show is None else _spread(names, show)
    found = sorted((tuple(group) for group in together if len(group) > 1), key=_turn)
    for group in found[:most]:
        yield Comparison(comparison_id(batch, group), prompt, group, wanted, batch=batch)


def comparison_id(batch: str, samples: Sequence[str]) -> str:
    """By what is shown, so that it is known again, and another batch asks anew."""
    return hashlib.blake2b("\x1f".join((batch, *samples)).encode(), digest_size=12).hexdigest()


def _turn(samples: Sequence[str]) -> int:
    """As `randomness.key`, without torch."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(("pair", *samples)).encode(), digest_size=8).digest(), "little")


def _spread(names: Sequence[str], most: int) -> Iterator[Sequence[str]]:
    """Groups of at most so many, as equal as can be: nobody is left over. Of twos of an odd number, two overlap."""
    count = -(-len(names) // most)
    for i in range(count):
        start, end = (len(names) * at // count for at in (i, i + 1))
        yield names[start : max(end, 2)]  # the first alone can be of one
