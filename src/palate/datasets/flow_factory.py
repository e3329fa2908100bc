"""Flow-Factory's offline pairs (schema version 2): strict JSONL beside the media.

    train.jsonl   {"schema_version": 2, "input": {"prompt": ..., "media": []}, "metadata": {}, "supervision":
    media/*        {"type": "preference", "chosen": {"media": [{"type": "image", "path": ...}]}, "rejected": {...}}}

Read are preferences with one medium on either side and none in the input; others are flaws, since a Preference cannot
hold them. Written is a folder with `train.jsonl` and the media by content. What the format cannot say: ties, scores and
aspects are left out and counted; P(chosen over rejected), votes, sources, seeds and the weight go into `metadata`,
which Flow-Factory ignores, and are read back here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from palate.media import TYPES, medium_bytes
from palate.reading import Source, Written, medium, number, pair, text
from palate.records import Medium, Preference, RecordError
from palate.tables import Flaw, Raw


def sniff(source: Source) -> bool:
    return {"schema_version", "input", "supervision"} <= source.first.keys()


def rows(source: Source) -> Iterator[Preference | Flaw]:
    def convert(raw: Raw, where: str) -> Preference:
        if raw["schema_version"] != 2:
            raise RecordError("schema_version", f"must be 2, got {raw['schema_version']!r}")
        given, verdict = _section(raw, "input"), _section(raw, "supervision")
        if given.get("media"):
            raise RecordError("input", "has media to condition on, which a preference row cannot hold")
        if verdict.get("type") != "preference":
            raise RecordError("supervision", f"is a {verdict.get('type')!r}, not a preference")
        said = raw.get("metadata") or {}
        return Preference(
            text(given, "prompt"),
            tuple(_one(_section(verdict, side), side, source.root) for side in ("chosen", "rejected")),
            **pair(number(said.get("preference", 1.0), "preference"), number(said.get("votes", 1.0), "votes")),
            weight=number(said.get("weight", 1.0), "weight"),
            sources=said.get("sources") or (),
            seeds=said.get("seeds") or (),
            where=where,
        )

    return source.rows(convert)


def _section(raw: Mapping[str, Any], name: str) -> Raw:
    if not isinstance(raw[name], dict):
        raise RecordError(name, f"must be an object, got {raw[name]!r}")
    found: Raw = raw[name]
    return found


def _one(side: Raw, name: str, root: Path | None) -> Medium:
    media = side["media"]
    if not isinstance(media, list) or len(media) != 1 or not isinstance(media[0], dict):
        raise RecordError(name, "must have exactly one medium")
    found = medium(media[0]["path"], name, root)
    if not found.type.startswith(f"{media[0].get('type')}/"):
        raise RecordError(name, f"says its medium is a {media[0].get('type')!r}; its name says {found.type}")
    return found


def write(target: str | Path, rows: Iterable[Preference], *, media_root: str | Path | None = None) -> Written:
    """A folder; `train.jsonl` is put there last. Raises FileExistsError if it is there already."""
    folder = Path(target)
    final = folder / "train.jsonl"
    if final.exists():
        raise FileExistsError(f"{final} is there already: choose another folder or remove it")
    (folder / "media").mkdir(parents=True, exist_ok=True)
    made = Written()
    aside = folder / "train.jsonl.unfinished"
    try:
        with aside.open("w", encoding="utf-8") as file:
            for row in rows:
                for i, j, p, votes in made.pairs(row):
                    if p == 0.5:
                        made.left_out["ties"] += 1
                        continue
                    best, other = (i, j) if p > 0.5 else (j, i)
                    paths = [_kept(folder, row.media[k], media_root) for k in (best, other)]
                    record = _record(row, best, other, max(p, 1 - p), votes, paths)
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
                    made.rows += 1
            file.flush()
            os.fsync(file.fileno())
        aside.replace(final)
    finally:
        aside.unlink(missing_ok=True)
    return made


def _record(row: Preference, i: int, j: int, p: float, votes: float, paths: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "schema_version": 2,
        "input": {"prompt": row.prompt, "media": []},
        "supervision": {"type": "preference", "chosen": {"media": paths[:1]}, "rejected": {"media": paths[1:]}},
        "metadata": {
            "preference": p,
            "votes": votes,
            "weight": row.weight,
            "sources": [row.sources[i], row.sources[j]],
            "seeds": [row.seeds[i], row.seeds[j]],
        },
    }


def _kept(folder: Path, found: Medium | None, media_root: str | Path | None) -> dict[str, str]:
    """The medium as a file of the folder, by its content."""
    assert found is not None  # a known pair has both its media
    content = medium_bytes(found, media_root)
    ending = next((ending for ending, kind in TYPES.items() if kind == found.type), ".bin")
    path = f"media/{hashlib.sha256(content).hexdigest()[:32]}{ending}"
    if not (folder / path).is_file():
        (folder / path).write_bytes(content)
    return {"type": found.type.split("/")[0], "path": path}
