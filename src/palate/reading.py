"""What all readers of public formats share: where rows come from, what they are made of, and flaws instead of ends.

A format converts raw rows, one dict each, to preferences: `source.rows(convert)`. A row that cannot be converted is a
`Flaw` and does not end the stream.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from palate.media import DatasetError, type_of_bytes, type_of_path
from palate.records import Medium, Preference, RecordError
from palate.tables import TABLES, Flaw, Raw, hub_rows, short, table_rows

SPLITS = ("train", "validation", "valid", "val", "dev", "test", "eval")
_NOT_DATA = ("dataset_info", "dataset_infos", "dataset_dict", "state", "config", "package", "manifest")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?(@[\w./-]+)?")
_FIRST = 20


@dataclass(frozen=True)
class Source:
    """A local file or folder, or a hub id `owner/name[:config][@revision]`, and which split of it.

    media_root: where relative media paths start, by default the folder itself or the file's.
    """

    name: str
    split: str | None = None
    media_root: Path | None = None

    @cached_property
    def path(self) -> Path | None:
        """The local file or folder; None for a hub id."""
        return Path(self.name) if Path(self.name).exists() else None

    @property
    def local(self) -> Path:
        """The local folder, for a format without splits. Raises DatasetError if there is none, or a split is wanted."""
        if self.path is None:
            raise DatasetError(f"{self.name}: there is no such file or folder")
        if self.split is not None:
            raise DatasetError(f"{self.name} has no splits, so no {self.split!r}: leave it out, or give its own folder")
        return self.path

    def check(self) -> None:
        """Raises DatasetError if there is nothing of that name, here or as far as its look goes on the hub."""
        if self.path is None and not _HUB_ID.fullmatch(self.name):
            raise DatasetError(f"{self.name}: there is no such file or folder, and it is no hub id (owner/name)")

    @cached_property
    def root(self) -> Path | None:
        """Where relative media paths start; None on the hub, where rows bring their media with them."""
        if self.media_root is not None or self.path is None:
            return self.media_root
        return self.path if self.path.is_dir() else self.path.parent

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The tables of the split; empty for a hub id and a folder without any."""
        return _tables(self.path, self.split) if self.path is not None else ()

    @cached_property
    def first(self) -> Raw:
        """The first row, by which formats are told apart; empty if there is none among the first few."""
        if self.path is not None and not self.files:
            return {}
        return next((raw for _, raw in islice(self.raw(), _FIRST) if isinstance(raw, dict)), {})

    @property
    def number(self) -> int | None:
        """How many raw rows there are, where the files say so; a damaged one says nothing until it is read."""
        import pyarrow.parquet as pq

        if not self.files or any(file.suffix != ".parquet" for file in self.files):
            return None
        try:
            return sum(pq.read_metadata(file).num_rows for file in self.files)
        except (ValueError, OSError):  # what pyarrow's errors are
            return None

    def raw(self) -> Iterator[tuple[str, Raw | Flaw]]:
        """Where each row stands, and the row. Raises DatasetError if there are none or the rest cannot be read."""
        if self.path is None:
            yield from _hub_rows(self.name, self.split)
            return
        if not self.files:
            raise DatasetError(f"{self.name} holds no table: no {', '.join(TABLES)} file")
        for file in self.files:
            yield from table_rows(file)

    def rows(self, convert: Callable[[Raw, str], Preference | None]) -> Iterator[Preference | Flaw]:
        """Each raw row converted. None: nothing is said in it, it is left out. What cannot be is a Flaw."""
        for where, raw in self.raw():
            if isinstance(raw, Flaw):
                yield raw
                continue
            made = converted(convert, raw, where)
            if made is not None:
                yield made


Made = TypeVar("Made", Preference, Preference | None)


def converted(convert: Callable[[Any, str], Made], raw: Any, where: str) -> Made | Flaw:
    """convert(raw, where), and a Flaw instead of what it raises about the row."""
    try:
        return convert(raw, where)
    except RecordError as error:
        return Flaw(where, f"field `{error.field}` {error.reason}", f"bad {error.field}")
    except KeyError as error:
        return Flaw(where, f"lacks {error.args[0]!r}", f"lacks {error.args[0]}")
    except (DatasetError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        return Flaw(where, f"is not as it should be ({type(error).__name__}: {short(str(error))})")


# --- what rows are made of --------------------------------------------------------------------------------------------


def text(raw: Mapping[str, Any], name: str) -> str:
    """A text of the row. Raises KeyError if it is not there, RecordError if it is something else."""
    value = raw[name]
    if not isinstance(value, str):
        raise RecordError(name, f"must be a text, got {short(value)}")
    return value


def number(value: Any, name: str) -> float:
    """A number, also where a CSV holds it as text; NaN for nothing."""
    if value is None or value == "":
        return math.nan
    try:
        if isinstance(value, bool | bytes):
            raise ValueError
        return float(value)
    except (TypeError, ValueError):
        raise RecordError(name, f"must be a number, got {short(value)}") from None


def medium(value: Any, name: str, root: Path | None = None) -> Medium:
    """A medium from bytes, a path, or {bytes, path} as `datasets` gives it. A path under root is made relative."""
    if isinstance(value, dict):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return Medium(type_of_bytes(value), value)
    if not isinstance(value, str) or not value:
        raise RecordError(name, f"must be a picture or its path, got {short(value)}")
    if re.match(r"[a-z][a-z0-9+.-]+://", value):
        raise RecordError(name, f"is a URL, {short(value)}: download the media and give their folder")
    if root is not None and Path(value).is_absolute() and Path(value).is_relative_to(root.absolute()):
        value = Path(value).relative_to(root.absolute()).as_posix()
    return Medium(type_of_path(value), path=value)


def pair(p: float, votes: float = 1.0) -> dict[str, Any]:
    """`prefer` and `votes` of two candidates, the first of which is preferred with probability p; NaN unknown."""
    n = 0.0 if math.isnan(p) else votes
    return {"prefer": ((math.nan, p), (1 - p, math.nan)), "votes": ((0.0, n), (n, 0.0))}


def known_pairs(row: Preference) -> Iterator[tuple[int, int, float, float]]:
    """i < j, P(i over j), votes: of every pair about which something is known."""
    for i in range(len(row)):
        for j in range(i + 1, len(row)):
            if not math.isnan(row.prefer[i][j]):
                yield i, j, row.prefer[i][j], row.votes[i][j]


# --- files ------------------------------------------------------------------------------------------------------------


def _tables(path: Path, split: str | None) -> tuple[Path, ...]:
    if path.is_file():
        return (path,)
    found = [
        file
        for folder in (path, path / "data", *(path / name for name in SPLITS))
        if folder.is_dir()
        for file in sorted(folder.iterdir())
        if file.suffix in TABLES and file.is_file() and file.stem not in _NOT_DATA
    ]
    by_split: dict[str, list[Path]] = {}
    for file in found:
        by_split.setdefault(_split_of(file, path), []).append(file)
    if split is not None and split not in by_split:
        known = ", ".join(sorted(name for name in by_split if name)) or "none"
        raise DatasetError(f"{path} has no split {split!r}; it has {known}")
    for name in (split,) if split else ("train", ""):
        if name in by_split:
            return tuple(by_split[name])
    if len(by_split) > 1:
        raise DatasetError(f"{path} has the splits {', '.join(sorted(by_split))}: say which by split=")
    return tuple(found)


def _split_of(file: Path, root: Path) -> str:
    """The split that a file's name or folder says it belongs to, as the hub reads names; empty if none."""
    words = [word for part in file.relative_to(root).with_suffix("").parts for word in re.split(r"[-_.]", part.lower())]
    for name in SPLITS:
        if name in words:
            unique = "_unique" if "unique" in words else ""  # Pick-a-Pic's validation_unique and test_unique
            return name + unique
    return ""


def _hub_rows(name: str, split: str | None) -> Iterator[tuple[str, Raw | Flaw]]:
    whole, _, revision = name.partition("@")
    repository, _, config = whole.partition(":")
    yield from hub_rows(repository, split=split or "train", name=config or None, revision=revision or None)


# --- writing ----------------------------------------------------------------------------------------------------------


@dataclass
class Written:
    """What a format wrote. rows: its records. left_out: pairs or rows that it cannot hold, by reason."""

    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def pairs(self, row: Preference, *, scored: bool = False) -> list[tuple[int, int, float, float]]:
        """Its `known_pairs`, for a format of pairs, or, `scored`, pairs with scores: what else it says is counted."""
        found = list(known_pairs(row))
        for lost, what in (
            (not found, "rows that compare nothing"),
            (row.aspects, "rows' aspects"),
            (not scored and any(s == s for line in row.scores for s in line), "rows' scores"),
        ):
            if lost:
                self.left_out[what] += 1
        return found
