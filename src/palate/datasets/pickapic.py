"""Pick-a-Pic v1 and v2 (Kirstain et al., 2023, arXiv:2305.01569): two pictures of a prompt, judged by its author.

    caption | jpg_0 | jpg_1 | label_0 | label_1 | has_label | model_0 | model_1 | image_0_uid | image_1_uid | ...

One row per judgement, 959,040 in v2's `train`. Labels are 1 and 0, or .5 and .5 for a tie; rows without a label
(`has_label` false) say nothing and are left out. The `_no_images` variants cannot be read: they hold no media.

Written are the same columns, so that loaders of Pick-a-Pic read them. Those know only 0, .5 and 1; what is between
is rounded for them and stands exactly in `preference` (P that picture 0 is better), beside `votes` and `weight`, which
are read back here. A row of K candidates becomes all its known pairs; its scores and aspects are left out and counted.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from palate.media import DatasetError, medium_bytes
from palate.reading import Source, Written, medium, number, pair, text
from palate.records import Medium, Preference, RecordError
from palate.tables import Flaw, Raw

SCHEMA = pa.schema(
    {
        "are_different": pa.bool_(),
        "best_image_uid": pa.string(),
        "caption": pa.string(),
        "has_label": pa.bool_(),
        "image_0_uid": pa.string(),
        "image_1_uid": pa.string(),
        "jpg_0": pa.binary(),
        "jpg_1": pa.binary(),
        "label_0": pa.float64(),
        "label_1": pa.float64(),
        "model_0": pa.string(),
        "model_1": pa.string(),
        "preference": pa.float64(),
        "votes": pa.float64(),
        "weight": pa.float64(),
    }
)
_GROUP_BYTES = 32 * 2**20


def sniff(source: Source) -> bool:
    return {"caption", "label_0", "label_1"} <= source.first.keys()


def rows(source: Source) -> Iterator[Preference | Flaw]:
    def convert(raw: Raw, where: str) -> Preference | None:
        p = _preference(raw)
        if p is None:
            return None
        if not raw.get("jpg_0") and not raw.get("jpg_1") and "image_0_url" in raw:
            raise RecordError("jpg_0", "and jpg_1 hold no pictures: this is the variant without images")
        votes, weight = number(raw.get("votes"), "votes"), number(raw.get("weight"), "weight")
        return Preference(
            text(raw, "caption"),
            (medium(raw["jpg_0"], "jpg_0"), medium(raw["jpg_1"], "jpg_1")),
            **pair(p, 1.0 if math.isnan(votes) else votes),
            weight=1.0 if math.isnan(weight) else weight,
            sources=(raw.get("model_0") or "", raw.get("model_1") or ""),
            where=where,
        )

    return source.rows(convert)


def _preference(raw: Raw) -> float | None:
    """P that picture 0 is better; None if nobody said. Raises RecordError for labels that contradict each other."""
    first, second = number(raw["label_0"], "label_0"), number(raw["label_1"], "label_1")
    if raw.get("has_label") is False or (math.isnan(first) and math.isnan(second)):
        return None
    if {first, second} not in ({0.0, 1.0}, {0.5}):
        raise RecordError("label_0", f"and label_1 must be 1 and 0, 0 and 1 or .5 and .5; they are {first}, {second}")
    exact = number(raw.get("preference"), "preference")
    return first if math.isnan(exact) else exact


def write(target: str | Path, rows: Iterable[Preference], *, media_root: str | Path | None = None) -> Written:
    """One parquet file. Raises DatasetError if it is there already, MediaError for a medium that cannot be read."""
    target = Path(target)
    if target.suffix != ".parquet":
        raise DatasetError(f"{target}: Pick-a-Pic is written as one file: let its name end in .parquet")
    if target.exists():
        raise FileExistsError(f"{target} is there already: choose another name or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    made, waiting, size = Written(), list[dict[str, Any]](), 0
    aside = target.with_name(target.name + ".unfinished")
    try:
        with pq.ParquetWriter(aside, SCHEMA, compression="zstd", use_dictionary=["model_0", "model_1"]) as writer:
            for row in rows:
                pairs = made.pairs(row)
                media = {i: medium_bytes(_there(row, i), media_root) for i in {k for i, j, *_ in pairs for k in (i, j)}}
                for i, j, p, votes in pairs:
                    waiting.append(_record(row, i, j, p, votes, media))
                    size += len(media[i]) + len(media[j])
                    made.rows += 1
                    if size >= _GROUP_BYTES or len(waiting) >= 1000:
                        writer.write_table(pa.Table.from_pylist(waiting, SCHEMA))
                        waiting, size = [], 0
            writer.write_table(pa.Table.from_pylist(waiting, SCHEMA))
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    return made


def _there(row: Preference, i: int) -> Medium:
    found = row.media[i]
    assert found is not None  # a known pair has both its media
    if not found.type.startswith("image/"):
        raise DatasetError(f"{row.where or row.id}: holds a medium of type {found.type}; Pick-a-Pic's are pictures")
    return found


def _record(row: Preference, i: int, j: int, p: float, votes: float, media: dict[int, bytes]) -> dict[str, Any]:
    label = 0.5 if p == 0.5 else float(p > 0.5)
    uids = [hashlib.sha256(media[k]).hexdigest()[:32] for k in (i, j)]
    return {
        "are_different": media[i] != media[j],
        "best_image_uid": "" if p == 0.5 else uids[p < 0.5],
        "caption": row.prompt,
        "has_label": True,
        "image_0_uid": uids[0],
        "image_1_uid": uids[1],
        "jpg_0": media[i],
        "jpg_1": media[j],
        "label_0": label,
        "label_1": 1 - label,
        "model_0": row.sources[i],
        "model_1": row.sources[j],
        "preference": p,
        "votes": votes,
        "weight": row.weight,
    }
