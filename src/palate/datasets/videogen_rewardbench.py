"""VideoGen-RewardBench and VideoAlign's training tables (Liu et al., 2025, arXiv:2501.13918): four verdicts a pair.

    videogen-rewardbench.csv   path_A, path_B, prompt, A_model, B_model, VQ, MQ, TA, Overall, ...
    videos/...

Each verdict is `A`, `B` or `same` (a tie); `invalid`, or nothing, is unknown. Visual quality (VQ), motion quality (MQ)
and text alignment (TA) become aspects, `Overall` the row's preference; a table without it has aspects alone.
Mean opinion scores (`MOS_A_VQ`, ...), where there are any, are kept as scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from palate.reading import Source, medium, number, pair, text
from palate.records import Aspect, Preference, RecordError
from palate.tables import Flaw, Raw

ASPECTS = ("VQ", "MQ", "TA")
_VERDICTS = {"a": 1.0, "b": 0.0, "same": 0.5, "tie": 0.5, "invalid": math.nan, "": math.nan, "nan": math.nan}


def sniff(source: Source) -> bool:
    names = source.first.keys()
    return {"path_A", "path_B", "prompt"} <= names and bool({*ASPECTS, "Overall"} & names)


def rows(source: Source) -> Iterator[Preference | Flaw]:
    scored = tuple(name for name in ASPECTS if f"MOS_A_{name}" in source.first)

    def convert(raw: Raw, where: str) -> Preference | None:
        verdicts = {name: _verdict(raw[name], name) for name in ASPECTS if name in raw}
        overall = _verdict(raw.get("Overall"), "Overall")
        if all(math.isnan(p) for p in (overall, *verdicts.values())):
            return None
        aspects = (Aspect(name, **pair(p)) for name, p in verdicts.items() if not math.isnan(p))
        return Preference(
            text(raw, "prompt"),
            (medium(raw["path_A"], "path_A", source.root), medium(raw["path_B"], "path_B", source.root)),
            **pair(overall),
            aspects=tuple(aspects),
            scores=tuple(tuple(number(raw.get(f"MOS_{s}_{name}"), "MOS") for name in scored) for s in "AB"),
            dimensions=scored,
            sources=(raw.get("A_model") or "", raw.get("B_model") or ""),
            where=where,
        )

    return source.rows(convert)


def _verdict(value: Any, name: str) -> float:
    """P that A is better."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return math.nan
    said = str(value).strip().lower()
    if said not in _VERDICTS:
        raise RecordError(name, f"must be A, B, same or invalid, got {value!r}")
    return _VERDICTS[said]
