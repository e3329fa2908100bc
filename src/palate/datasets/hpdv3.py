"""HPDv3, Human Preference Dataset v3 (Ma et al., 2025, arXiv:2508.03789): pairs, the preferred picture first.

    [{"prompt", "path1": preferred, "path2": the other, "choice_dist": [12, 7], "confidence": 0.99, "model1", "model2"}]

`choice_dist` counts the annotators on either side; since `path1` is the preferred one by definition, the larger count
is its own. Without it the preference is 1. `confidence`, where it is given, becomes the row's weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from palate.reading import Source, medium, number, pair, text
from palate.records import Preference, RecordError
from palate.tables import Flaw, Raw


def sniff(source: Source) -> bool:
    return {"prompt", "path1", "path2"} <= source.first.keys()


def rows(source: Source) -> Iterator[Preference | Flaw]:
    def convert(raw: Raw, where: str) -> Preference:
        confidence = number(raw.get("confidence"), "confidence")
        if not math.isnan(confidence) and not 0 <= confidence <= 1:
            raise RecordError("confidence", f"must lie from 0 to 1, got {confidence}")
        return Preference(
            text(raw, "prompt"),
            (medium(raw["path1"], "path1", source.root), medium(raw["path2"], "path2", source.root)),
            **pair(*_share(raw.get("choice_dist"))),
            weight=1.0 if math.isnan(confidence) else confidence,
            sources=(raw.get("model1") or "", raw.get("model2") or ""),
            where=where,
        )

    return source.rows(convert)


def _share(counts: Any) -> tuple[float, float]:
    """P that path1 is better, and how many judgements stand behind it."""
    if not counts:
        return 1.0, 1.0
    if not isinstance(counts, list) or len(counts) != 2:
        raise RecordError("choice_dist", f"must be two counts, got {counts!r}")
    most, least = sorted((number(count, "choice_dist") for count in counts), reverse=True)
    if not 0 <= least <= most < math.inf:
        raise RecordError("choice_dist", f"must be two counts, got {counts!r}")
    return (most / (most + least), most + least) if most else (1.0, 1.0)
