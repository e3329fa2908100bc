"""ImageRewardDB (Xu et al., 2023, arXiv:2304.05977): rankings of the pictures of a prompt, with ratings.

    train_1/train_1.json  [{"image_path", "prompt_id", "prompt", "rank", "overall_rating", "fidelity_rating",
    train_1/*.webp          "image_text_alignment_rating", "image_amount_in_total", "classification"}, ...]

One record per picture, those of a prompt one after another; rank 1 is the best, equal ranks tie. From the hub the
variants `8k` (a picture a row), `8k_group` (lists) and `8k_pair` (`img_better`, `img_worse`) are told by their columns.
The ratings are kept as scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from palate.reading import Source, converted, medium, number, pair, text
from palate.records import Medium, Preference, RecordError
from palate.tables import Flaw, Raw
from palate.views import prefer_from_scores

RATINGS = ("overall_rating", "image_text_alignment_rating", "fidelity_rating")
MAX_GROUP = 1000  # pictures of one prompt: more are another data set, or a bomb


def sniff(source: Source) -> bool:
    names = source.first.keys()
    return {"prompt", "img_better", "img_worse"} <= names or {"prompt_id", "prompt", "rank", RATINGS[0]} <= names


def rows(source: Source) -> Iterator[Preference | Flaw]:
    """Rows of the variant that the columns show."""
    first = source.first
    if "img_better" in first:
        return source.rows(_pair)
    if isinstance(first.get("rank"), list):
        return source.rows(lambda raw, where: _group(_spread(raw), where, source.root))
    return _groups(source)


def _pair(raw: Raw, where: str) -> Preference:
    media = medium(raw["img_better"], "img_better"), medium(raw["img_worse"], "img_worse")
    return Preference(text(raw, "prompt"), media, **pair(1.0), where=where)


def _spread(raw: Raw) -> list[Raw]:
    """A row of lists as a row per picture."""
    names = [name for name in ("image", "image_path", "rank", *RATINGS) if isinstance(raw.get(name), list)]
    return [{**raw, **{name: raw[name][i] for name in names}} for i in range(len(raw["rank"]))]


def _groups(source: Source) -> Iterator[Preference | Flaw]:
    """Records with the same prompt id that follow each other, as one row."""
    group: list[Raw] = []
    begun = ""
    for where, raw in source.raw():
        if isinstance(raw, Flaw):
            yield raw
            continue
        if group and (raw.get("prompt_id") != group[0].get("prompt_id") or len(group) >= MAX_GROUP):
            yield converted(lambda group, where: _group(group, where, source.root), group, begun)
            group = []
        begun = begun if group else where
        group.append(raw)
    if group:
        yield converted(lambda group, where: _group(group, where, source.root), group, begun)


def _group(records: list[Raw], where: str, root: Path | None) -> Preference:
    if len({text(raw, "prompt") for raw in records}) > 1:
        raise RecordError("prompt", f"differs among the pictures of prompt_id {records[0].get('prompt_id')!r}")
    ranks = [number(raw["rank"], "rank") for raw in records]
    return Preference(
        records[0]["prompt"],
        tuple(_medium(raw, root) for raw in records),
        prefer_from_scores([-rank for rank in ranks]).tolist(),
        scores=tuple(tuple(number(raw.get(name), name) for name in RATINGS) for raw in records),
        dimensions=RATINGS,
        where=where,
    )


def _medium(raw: Raw, root: Path | None) -> Medium:
    """Paths count from the folder of the hub's zips; unpacked on their own the pictures lie beside their table."""
    value: Any = raw["image"] if raw.get("image") is not None else raw["image_path"]
    if root is not None and isinstance(value, str) and "/" in value and not (root / value).is_file():
        value = value.rpartition("/")[2]
    return medium(value, "image_path", root)
