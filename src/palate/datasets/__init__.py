"""Preference data as people have it: one public format per file; the file name is the registry.

    reader = open("hpdv3/train.json")                   # the format is found by looking; format="hpdv3" says it
    for row in reader:                                  # palate.records.Preference, streamed, media undecoded
        picture = media.decode(row.media[0], reader.root)
    print(reader.flaws)                                 # rows that could not be used: counted, with the first few

A format is a module with

- `sniff(source) -> bool`: whether a `reading.Source` is of this format, by its files or the names of its columns;
- `rows(source) -> Iterator[Preference | Flaw]`: streamed; media as bytes or as paths relative to `source.root`;
- where it can be written, `write(target, rows, media_root=None)`, which returns what has `rows`, the number of records,
  and `left_out` where the format cannot hold all that a row says;
- where the files say it, `count(source) -> int`: how many rows there are; where they can be told to be damaged,
  `problems(source) -> list[str]`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import ModuleType

from palate import plugins
from palate.media import DatasetError
from palate.reading import Source, Written
from palate.records import Preference
from palate.tables import Flaw

KEPT = 5  # flaws of a kind that are kept to be shown


@dataclass
class Flaws:
    """Rows that could not be used: how many in all, and of each kind how many and the first few."""

    total: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[Flaw]] = field(default_factory=dict)

    def add(self, flaw: Flaw) -> None:
        self.total += 1
        self.counts[flaw.kind] += 1
        shown = self.first.setdefault(flaw.kind, [])
        if len(shown) < KEPT:
            shown.append(flaw)

    def __str__(self) -> str:
        return "; ".join(f"{n} x {kind} (first: {self.first[kind][0].where})" for kind, n in self.counts.most_common())


class Reader:
    """Preference rows of a folder, a file or a hub id. Each iteration is a new pass over the data.

    format: its name. root: the folder that media paths are relative to; None where rows hold bytes only.
    number: raw rows there are, None if the source does not say. flaws: of the latest pass, complete when that is.
    """

    def __init__(self, source: Source, format: str, limit: int | None = None) -> None:
        self.source, self.format, self.limit = source, format, limit
        self.module: ModuleType = plugins.find("datasets", format)
        self.flaws = Flaws()

    @property
    def root(self) -> Path | None:
        return self.source.root

    @property
    def number(self) -> int | None:
        count = self.module.count(self.source) if hasattr(self.module, "count") else self.source.number
        return count if count is None or self.limit is None else min(count, self.limit)

    def __iter__(self) -> Iterator[Preference]:
        """Rows, those that cannot be used left out and counted in `flaws`. Raises DatasetError if the rest is lost."""
        self.flaws = flaws = Flaws()
        for row in islice(self.module.rows(self.source), self.limit):
            if isinstance(row, Flaw):
                flaws.add(row)
            else:
                yield row


def open(
    path: str | Path,
    format: str | None = None,
    split: str | None = None,
    media_root: str | Path | None = None,
    limit: int | None = None,
) -> Reader:
    """A reader of a local folder or file, or of a hub id `owner/name[:config][@revision]`.

    format: one of `formats()` or a dotted path; found by looking if None. split: which one, `train` if there are
    several. media_root: where relative media paths start, if not the folder itself. limit: rows to stop after.
    Raises DatasetError if there is nothing there, or nothing that any format knows.
    """
    source = Source(str(path), split, Path(media_root) if media_root is not None else None)
    source.check()
    return Reader(source, format or sniffed(source), limit)


def sniffed(source: Source) -> str:
    """The name of the format that knows the source. Raises DatasetError if none does."""
    for name in formats():
        if plugins.find("datasets", name).sniff(source):
            return name
    columns = ", ".join(source.first) if source.path is None or source.files else ""
    if not columns and source.path is not None and source.path.is_dir() and not any(source.path.iterdir()):
        raise DatasetError(f"{source.name} is empty: put the data there, or give another folder")
    known = f"no format knows ({', '.join(formats())})"
    if columns:
        raise DatasetError(
            f"{source.name} has the columns {columns}, which {known}: "
            f"{plugins.find('datasets', 'table').lacks(source.first)}; name the columns so, or the format by --format "
            "(data.format in a recipe)"
        )
    raise DatasetError(
        f"{source.name} holds no table, and no pictures in pairs, which {known}: name it by --format (data.format in a "
        "recipe)"
    )


def formats() -> list[str]:
    """Names of the formats as they are sniffed: our own first, anyone's own table last."""
    return sorted(plugins.available("datasets"), key=lambda name: (name != "parquet", name == "table", name))


def write(target: str | Path, rows: Iterable[Preference], format: str, media_root: str | Path | None = None) -> Written:
    """Writes rows in a format that can be written. Raises DatasetError for another."""
    module = plugins.find("datasets", format)
    if not hasattr(module, "write"):
        able = [name for name in formats() if hasattr(plugins.find("datasets", name), "write")]
        raise DatasetError(f"{format} can only be read; written can be {', '.join(able)}")
    made = module.write(target, rows, media_root=media_root)
    return Written(made.rows, getattr(made, "left_out", None) or Counter())
