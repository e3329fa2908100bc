"""What GenEval asks of pictures, asked of this world's: is each thing there that the caption names, strictly.

A scorer by its dotted path, `palate.worlds.shapes.checks`. Each score is 1 or 0, NaN where the caption does not ask:

- `objects`     as many recognisable objects as things, of these shapes
- `colour`, `size`   of the objects, matched to the things as well as can be
- `position`    the first lies to the second as asked
- `background`
- `correct`     all that is asked
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from palate.worlds.shapes.language import Request, Thing, parse_caption
from palate.worlds.shapes.oracle import Record, SeenObject, read, relation

DIMENSIONS = ("objects", "colour", "size", "position", "background", "correct")


class Checks:
    """`Checks()(prompts, media) -> {dimension: float64 [n]}`."""

    dimensions = DIMENSIONS

    def check(self, prompts: Sequence[str]) -> None:
        """Raises ValueError for the first prompt that is no caption of this world."""
        for text in prompts:
            parse_caption(text)

    def __call__(self, prompts: Sequence[str], media: Sequence[Any]) -> dict[str, np.ndarray]:
        rows = [checked(parse_caption(text), read(picture)) for text, picture in zip(prompts, media, strict=True)]
        return {name: np.array([row[name] for row in rows], np.float64) for name in DIMENSIONS}


def load() -> Checks:
    return Checks()


def category(text: str) -> str:
    """What kind of caption it is: `one thing`, `left or right`, `above or below`."""
    how = parse_caption(text).relation
    return "one thing" if how is None else "left or right" if how in ("left of", "right of") else "above or below"


def checked(request: Request, record: Record) -> dict[str, float]:
    """Each dimension of one picture."""
    wanted, seen = request.things, [o for o in record.objects if o.known > 0]
    best: dict[str, float] = dict.fromkeys(DIMENSIONS, 0.0)
    if len(seen) == len(wanted):
        found = (_matched(request, chosen) for chosen in itertools.permutations(seen))
        best = max(found, key=lambda row: sum(value for value in row.values() if value == value))
    if request.relation is None:
        best["position"] = math.nan
    best["background"] = float(record.background == request.background)
    best["correct"] = float(all(best[name] != 0 for name in DIMENSIONS if name != "correct"))
    return best


def _matched(request: Request, chosen: Sequence[SeenObject]) -> dict[str, float]:
    pairs: list[tuple[Thing, SeenObject]] = list(zip(request.things, chosen, strict=True))
    place = request.relation is None or relation(*chosen) == request.relation
    return {
        "objects": float(all(thing.shape == o.shape for thing, o in pairs)),
        "colour": float(all(thing.colour == o.colour for thing, o in pairs)),
        "size": float(all(thing.size == o.size for thing, o in pairs)),
        "position": float(place),
    }
