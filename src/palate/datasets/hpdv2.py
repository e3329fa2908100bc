"""HPDv2, Human Preference Dataset v2 (Wu et al., 2023, arXiv:2306.09341): pairs to train on, rankings to test.

    HPDv2/train.json   [{"prompt", "file_path": [a, b], "human_preference": [1, 0]}, ...]     1 the preferred one
    HPDv2/test.json    [{"prompt", "image_path": [...], "rank": [...], "raw_annotations": [{"rank", "user_hash"}]}]
    HPDv2/train/*.jpg  HPDv2/test/*.jpg

`rank` is best first, averaged over annotators. Where each annotator's own ranking is there (`raw_annotations`, or
`raw_annotation`) and bears `rank` out, the preference is the share of annotators, and `votes` their number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from palate.reading import Source, medium, number, text
from palate.records import Medium, Preference, RecordError
from palate.tables import Flaw, Raw
from palate.views import prefer_from_scores, prefer_from_table


def sniff(source: Source) -> bool:
    first = source.first
    if {"prompt", "file_path", "human_preference"} <= first.keys():
        return True
    return {"prompt", "image_path", "rank"} <= first.keys() and isinstance(first["image_path"], list)


def rows(source: Source) -> Iterator[Preference | Flaw]:
    def convert(raw: Raw, where: str) -> Preference:
        ranked = "human_preference" not in raw
        media = _media(raw["image_path" if ranked else "file_path"], source.root, "test" if ranked else "train")
        prefer, votes = _ranked(raw, len(media)) if ranked else _chosen(raw, len(media))
        return Preference(text(raw, "prompt"), media, prefer, votes=votes, where=where)

    return source.rows(convert)


def _media(paths: Any, root: Path | None, split: str) -> tuple[Medium, ...]:
    """Media of bare names lie in the folder of the split, where there is one."""
    if not isinstance(paths, list) or not paths:
        raise RecordError("media", "must be a list of paths")
    prefix = f"{split}/" if root is not None and (root / split).is_dir() else ""
    bare = (prefix + path if isinstance(path, str) and "/" not in path else path for path in paths)
    return tuple(medium(path, "media", root) for path in bare)


def _chosen(raw: Raw, k: int) -> tuple[Any, Any]:
    labels = _numbers(raw["human_preference"], k, "human_preference")
    return prefer_from_scores(labels).tolist(), ()


def _ranked(raw: Raw, k: int) -> tuple[Any, Any]:
    people = raw.get("raw_annotations") or raw.get("raw_annotation") or []
    ranks = np.array(_numbers(raw["rank"], k, "rank"))
    each = [_numbers(one["rank"], k, "raw_annotations") for one in people if isinstance(one, Mapping)]
    if not each or not _agree(ranks, np.array(each).mean(0)):
        return prefer_from_scores(-ranks).tolist(), ()
    prefer, votes = prefer_from_table(-np.array(each))
    return prefer.tolist(), votes.tolist()


def _agree(ranks: Any, means: Any) -> bool:
    """Whether the annotators' lists are ranks of the pictures, as `rank` is: their means order most pairs alike."""
    i, j = np.triu_indices(len(ranks), 1)
    told = (ranks[i] != ranks[j]) & (means[i] != means[j])
    return bool(((ranks[i] < ranks[j]) == (means[i] < means[j]))[told].mean() > 0.75) if told.any() else True


def _numbers(values: Any, k: int, name: str) -> list[float]:
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != k:
        raise RecordError(name, f"must be a list of {k} numbers, one for each picture")
    found = [number(value, name) for value in values]
    if any(math.isinf(value) for value in found):
        raise RecordError(name, "must be finite")
    return found
