"""Scores that a scorer gave stored rows, kept in a run's folder: nothing is judged twice, however often a run starts.

    with Labels(Relabel(scorer), run, made_by={"pickscore": 1.0}) as labels:
        row = labels(row, shown)

A scorer need not say the same twice (a judge that samples its answers, a service that is mended), and a run goes on
with the rows it began with, or not at all. Each process appends what it scored to a file of its own, `labels-0.jsonl`,
a line a row; all read all files when they begin. What was scored before a kill is there; half a line is cut off.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from palate.durable import StorageError, explained
from palate.records import Preference
from palate.relabel import Array, Relabel

PATTERN = "labels-*.jsonl"


@dataclass(frozen=True)
class Shown:
    """What there is to see of a row. place: in the data. content: K digests of its media's bytes, "" where there is
    none. media: decodes them, K, None where there is none or it cannot be read.
    """

    place: int
    content: Sequence[str]
    media: Callable[[], Sequence[Any]]


class Labels:
    """A change of rows as they are read: `relabel`, by scores that are kept. Memory holds some twenty bytes a row."""

    def __init__(self, relabel: Relabel, folder: Path, made_by: Mapping[str, float], rank: int = 0) -> None:
        """made_by: the scorers and their weights; what others gave is not used. Raises StorageError, one line."""
        self._relabel, self._made_by = relabel, json.dumps(dict(made_by), sort_keys=True)
        self.made_by = [self._made_by, relabel.temperature]  # all that labels depend on, but for the rows
        self._path = folder / f"labels-{rank}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _cut(self._path)
            self._kept = _Kept(sorted(folder.glob(PATTERN)))
            self._out: IO[bytes] = self._path.open("ab")
        except OSError as error:
            raise StorageError(explained(error, self._path, 0) or str(error)) from error

    def __enter__(self) -> Labels:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with self._out:
                os.fsync(self._out.fileno())
        finally:
            self._kept.close()

    def __call__(self, row: Preference, shown: Shown) -> Preference:
        """Raises StorageError, one line, for a disk that is full."""
        key = hashlib.sha256(json.dumps([self._made_by, row.prompt, *shown.content]).encode()).hexdigest()
        if (found := self._kept.get(key, shown.place)) is not None:
            dimensions, scores = tuple(found["dimensions"]), np.array(found["scores"], np.float64)  # null becomes NaN
        else:
            dimensions, scores = self._relabel.judged(row.prompt, shown.media())
            self._keep({"key": key, "place": shown.place, "dimensions": dimensions, "scores": _plain(scores)})
        return self._relabel.labelled(row, dimensions, scores.reshape(len(row), len(dimensions)))

    def _keep(self, line: Mapping[str, Any]) -> None:
        try:
            self._out.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
            self._out.flush()
        except OSError as error:
            raise StorageError(explained(error, self._path, 0) or str(error)) from error


def _plain(scores: Array) -> list[list[float | None]]:
    """Infinities stay, as JSON's readers here know them; NaN is null."""
    return [[None if value != value else float(value) for value in line] for line in scores]


def _cut(path: Path) -> None:
    """Cuts off half a line, which a kill left at the end. A file that is not there yet is made."""
    with path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - 2**16)
            file.seek(begin)
            if (at := file.read(end - begin).rfind(b"\n")) >= 0:
                file.truncate(begin + at + 1)
                return
            end = begin
        file.truncate(0)


class _Kept:
    """Lines of several files by their keys: of a key's lines that of the same place, else any."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [path.open("rb") for path in paths]
        keys, files, begins, places = array("Q"), array("H"), array("q"), array("q")
        for number, file in enumerate(self._files):
            begin = 0
            for text in file:
                if (line := _line(text)) is not None:
                    keys.append(int(line["key"][:16], 16))
                    files.append(number)
                    begins.append(begin)
                    places.append(line["place"])
                begin += len(text)
        order = np.argsort(np.array(keys), kind="stable")
        self._keys, self._from = np.array(keys)[order], np.array(files)[order]
        self._begins, self._places = np.array(begins)[order], np.array(places)[order]

    def get(self, key: str, place: int) -> dict[str, Any] | None:
        wanted = np.uint64(int(key[:16], 16))
        first, last = (int(np.searchsorted(self._keys, wanted, side)) for side in ("left", "right"))
        for at in sorted(range(first, last), key=lambda at: self._places[at] != place):
            file = self._files[self._from[at]]
            file.seek(int(self._begins[at]))
            line = _line(file.readline())
            if line is not None and line["key"] == key:
                return line
        return None

    def close(self) -> None:
        for file in self._files:
            file.close()


def _line(text: bytes) -> dict[str, Any] | None:
    """None for half a line, or what is none of ours."""
    try:
        line: dict[str, Any] = json.loads(text)
        return line if text.endswith(b"\n") and {"key", "place", "dimensions", "scores"} <= line.keys() else None
    except (ValueError, AttributeError):
        return None
