"""Your own table, CSV or JSONL, with paths relative to its folder.

    prompt,chosen,rejected                            the winner's path and the loser's
    prompt,a,b,winner                                 winner: a, b or tie; empty where nobody said
    prompt,a,b,preference                             preference: P(a is better), from 0 to 1
    {"prompt": ..., "media": [...], "ranks": [...]}   JSONL: K candidates, ranks (1 the best, equal ranks tie),
    {"prompt": ..., "media": [...], "scores": [...]}  or scores (higher is better),
    {"prompt": ..., "media": [...], "prefer": [[...]]}  or the whole matrix, null unknown

`a` and `b` may also be called `image_a`, `path_a`, `video_a` or `image_0`, `path_0`, `media_0` ... Further columns, all
optional: `votes` (judgements behind a pair), `weight`, `source_a` and `source_b` (models), or lists `sources`, `seeds`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator
from typing import Any

from palate.reading import Source, medium, number, pair, text
from palate.records import Preference, RecordError
from palate.tables import Flaw, Raw
from palate.views import prefer_from_scores

PAIRS = (
    ("a", "b"),
    *((f"{kind}_{i}", f"{kind}_{j}") for kind in ("image", "path", "video", "audio", "media") for i, j in ("ab", "01")),
)
_WINNERS = {"a": 1.0, "b": 0.0, "tie": 0.5, "": math.nan}


def sniff(source: Source) -> bool:
    names = source.first.keys()
    if "prompt" not in names:
        return False
    judged = {"winner", "preference"} & names and _sides(source.first) is not None
    listed = "media" in names and {"ranks", "scores", "prefer"} & names
    return bool({"chosen", "rejected"} <= names or judged or listed)


def lacks(names: Iterable[str]) -> str:
    """What columns that are no table's of ours would have to be called, in words."""
    given, missing = list(names), []
    for column in ("prompt", "chosen", "rejected"):
        if column not in given:
            alike = difflib.get_close_matches(column, given, 1)
            missing.append(repr(column) + (f" (is it {alike[0]!r}?)" if alike else ""))
    ours = "prompt, chosen, rejected, or prompt, a, b, winner"
    return f"a table of your own has {ours}, and here is no {' and no '.join(missing)}"


def rows(source: Source) -> Iterator[Preference | Flaw]:
    def convert(raw: Raw, where: str) -> Preference | None:
        if "media" in raw:
            return _listed(raw, where, source)
        given = _judged(raw)
        if given is None:
            return None
        names, p = given
        weight, votes = number(raw.get("weight"), "weight"), number(raw.get("votes"), "votes")
        ends = [name.rpartition("_")[2] for name in names]
        return Preference(
            text(raw, "prompt"),
            tuple(medium(raw[name], name, source.root) for name in names),
            **pair(p, 1.0 if math.isnan(votes) else votes),
            weight=1.0 if math.isnan(weight) else weight,
            sources=tuple(raw.get(f"source_{end}") or "" for end in ends),
            where=where,
        )

    return source.rows(convert)


def _sides(raw: Raw) -> tuple[str, str] | None:
    return next(((a, b) for a, b in PAIRS if a in raw and b in raw), None)


def _judged(raw: Raw) -> tuple[tuple[str, str], float] | None:
    """The columns of the two candidates and P that the first is better; None if nobody said."""
    if "chosen" in raw and "rejected" in raw:
        return ("chosen", "rejected"), 1.0
    names = _sides(raw)
    if names is None:
        raise RecordError("media", "must be in the columns chosen and rejected, or a and b")
    if "preference" in raw:
        p = number(raw["preference"], "preference")
    else:
        said = str(raw["winner"] or "").strip().lower()
        if said not in _WINNERS:
            raise RecordError("winner", f"must be a, b or tie, or empty; got {raw['winner']!r}")
        p = _WINNERS[said]
    return None if math.isnan(p) else (names, p)


def _listed(raw: Raw, where: str, source: Source) -> Preference:
    k = len(raw["media"])
    given: dict[str, Any] = {name: raw[name] for name in ("votes", "sources", "seeds") if raw.get(name) is not None}
    if raw.get("prefer") is not None:
        prefer = raw["prefer"]
    else:
        name, sign = ("ranks", -1) if raw.get("ranks") is not None else ("scores", 1)
        values = [number(value, name) for value in raw[name]]
        if len(values) != k:
            raise RecordError(name, f"must be {k} numbers, one for each candidate; there are {len(values)}")
        prefer = prefer_from_scores([sign * value for value in values]).tolist()
    scores = raw.get("scores")
    return Preference(
        text(raw, "prompt"),
        tuple(medium(path, "media", source.root) for path in raw["media"]),
        prefer,
        scores=tuple((number(score, "scores"),) for score in scores) if scores else (),
        dimensions=("score",),  # of every row, scored or not: a later row may be
        weight=number(raw.get("weight", 1.0), "weight"),
        where=where,
        **given,
    )
