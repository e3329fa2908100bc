"""Human feedback as D3PO's code reads it (Yang et al., 2024, arXiv:2311.13231): nested lists beside numbered pictures.

    samples/prompt.json        ["1 hand", ...]                     one prompt a row
    samples/images/00000.png   row n's candidate k is number K n + k
    samples/json/anna.json     [[1, 0, -1, ...], [0, 1, 0, ...]]   one list of K labels a row, a file per annotator

`[1, 0]`: the first is better, `[0, 1]`: the second, `[0, 0]`: neither. Feedback lies in the folder itself or in folders
of it. Of several annotators D3PO compares the mean labels; here the share that prefers either is kept, with their
number, and the mean label as the score `label`. `sample.pkl`, the latents, is a pickle and is never opened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from palate.media import DatasetError
from palate.reading import Source, converted, number
from palate.records import Medium, Preference, RecordError
from palate.tables import Flaw, json_array
from palate.views import prefer_from_table


def sniff(source: Source) -> bool:
    folder = source.path
    return folder is not None and (folder / "prompt.json").is_file() and (folder / "images").is_dir()


def rows(source: Source) -> Iterator[Preference | Flaw]:
    files = _feedback(source.local)
    labels = zip_longest(*(json_array(file) for file in files))
    k: int | None = None
    for row, (prompt, given) in enumerate(zip_longest(json_array(source.local / "prompt.json"), labels)):
        people = [one for one in given or () if one is not None]
        if k is None and people and isinstance(people[0], list):
            k = len(people[0])  # of the first row, from which the pictures are numbered
        if people:
            yield converted(_preference, (prompt, people, k, row), f"row {row} of {', '.join(f.name for f in files)}")


def _feedback(folder: Path) -> list[Path]:
    found = sorted(file for file in (*folder.glob("*.json"), *folder.glob("*/*.json")) if file.name != "prompt.json")
    if not found:
        raise DatasetError(f"{folder} holds no feedback: put a JSON list of lists of labels into it")
    return found


def _preference(given: tuple[Any, list[Any], int | None, int], where: str) -> Preference:
    prompt, people, k, row = given
    if not isinstance(prompt, str):
        raise RecordError("prompt", "is not in prompt.json, which has fewer rows than the feedback")
    if not k or any(not isinstance(one, list) or len(one) != k for one in people):
        raise RecordError("prefer", f"must be lists of {k} labels each, got {str(people)[:60]}")
    labels = np.array([[number(label, "label") for label in one] for one in people])
    prefer, votes = prefer_from_table(labels)
    known = ~np.isnan(labels)
    mean = np.where(known, labels, 0).sum(0) / np.maximum(known.sum(0), 1)
    return Preference(
        prompt,
        tuple(Medium("image/png", path=f"images/{row * k + i:05}.png") for i in range(k)),
        prefer.tolist(),
        votes=votes.tolist(),
        scores=tuple((float(m) if n else math.nan,) for m, n in zip(mean, known.any(0), strict=True)),
        dimensions=("label",),
        where=where,
    )
