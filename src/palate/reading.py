"""Raw rows of tables that others wrote, streamed: JSON, JSONL, CSV, parquet and Arrow files, or a hub id.

What all readers of public formats share. A row is a plain dict; a row that cannot be read is a `Flaw` and does not end
the stream. Memory holds a few rows, whatever the size of the file; nothing is executed and nothing unpickled.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from palate.media import DatasetError, type_of_bytes, type_of_path
from palate.records import Medium, Preference, RecordError

Raw = dict[str, Any]
MAX_ROW_CHARS = 64 * 2**20  # of one JSON row: a longer one is a bomb
MAX_GROUP_BYTES = 4 * 2**30  # of a row group of parquet, which is held whole where its dictionary holds its media
TABLES = (".jsonl", ".json", ".csv", ".parquet", ".arrow")
SPLITS = ("train", "validation", "valid", "val", "dev", "test", "eval")
_NOT_DATA = ("dataset_info", "dataset_infos", "dataset_dict", "state", "config", "package", "manifest")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?(@[\w./-]+)?")
_BATCH = 16
_FIRST = 20
_PIECE = 2**16
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Flaw:
    """A row that cannot be used. where: its file and number. kind: the reason without what is particular to the row."""

    where: str
    reason: str
    kind: str = "bad row"


@dataclass(frozen=True)
class Source:
    """A local file or folder, or a hub id `owner/name[:config][@revision]`, and which split of it.

    media_root: where relative media paths start, by default the folder itself or the file's.
    """

    name: str
    split: str | None = None
    media_root: Path | None = None

    @property
    def path(self) -> Path | None:
        """The local file or folder; None for a hub id."""
        return Path(self.name) if Path(self.name).exists() else None

    def __fspath__(self) -> str:
        return str(self.local)

    @property
    def local(self) -> Path:
        """The local file or folder. Raises DatasetError if there is none."""
        if self.path is None:
            raise DatasetError(f"{self.name}: there is no such file or folder")
        return self.path

    @property
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
        """How many raw rows there are, where the files say so."""
        import pyarrow.parquet as pq

        if not self.files or any(file.suffix != ".parquet" for file in self.files):
            return None
        return sum(pq.read_metadata(file).num_rows for file in self.files)

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
        return Flaw(where, f"is not as it should be ({type(error).__name__}: {_short(str(error))})")


# --- what rows are made of --------------------------------------------------------------------------------------------


def text(raw: Mapping[str, Any], name: str) -> str:
    """A text of the row. Raises KeyError if it is not there, RecordError if it is something else."""
    value = raw[name]
    if not isinstance(value, str):
        raise RecordError(name, f"must be a text, got {_short(value)}")
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
        raise RecordError(name, f"must be a number, got {_short(value)}") from None


def medium(value: Any, name: str, root: Path | None = None) -> Medium:
    """A medium from bytes, a path, or {bytes, path} as `datasets` gives it. A path under root is made relative."""
    if isinstance(value, dict):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return Medium(type_of_bytes(value), value)
    if not isinstance(value, str) or not value:
        raise RecordError(name, f"must be a picture or its path, got {_short(value)}")
    if re.match(r"[a-z][a-z0-9+.-]+://", value):
        raise RecordError(name, f"is a URL, {_short(value)}: download the media and give their folder")
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


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 60 else said[:57] + "..."


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


def table_rows(file: Path) -> Iterator[tuple[str, Raw | Flaw]]:
    """The rows of one table, by its ending. Raises DatasetError for another ending, or if the rest cannot be read."""
    reader = {
        ".jsonl": _jsonl_rows,
        ".json": _json_rows,
        ".csv": _csv_rows,
        ".parquet": _parquet_rows,
        ".arrow": _arrow_rows,
    }.get(file.suffix)
    if reader is None:
        raise DatasetError(f"{file} is no table: its name must end in {', '.join(TABLES)}")
    number = 0
    try:
        for number, raw in enumerate(reader(file)):
            where = f"{file.name} row {number}"
            if isinstance(raw, Flaw):
                yield where, replace(raw, where=where)
            elif isinstance(raw, dict):
                yield where, raw
            else:
                yield where, Flaw(where, f"is no row of named fields but {_short(raw)}")
    except DatasetError:
        raise
    except (ValueError, OSError, csv.Error, RecursionError) as error:  # pyarrow's errors are ValueErrors or OSErrors
        raise DatasetError(
            f"{file} cannot be read after row {number} ({type(error).__name__}: {_short(str(error))}): copy it again"
        ) from None


def _jsonl_rows(file: Path) -> Iterator[Any]:
    with file.open("rb") as lines:
        while line := lines.readline(MAX_ROW_CHARS):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                if len(line) >= MAX_ROW_CHARS:
                    raise DatasetError(f"{file} has a line of more than {MAX_ROW_CHARS} bytes") from None
                yield Flaw("", f"is no JSON ({_short(str(error))})", "no JSON")


def _json_rows(file: Path) -> Iterator[Any]:
    return json_array(file)


def json_array(file: Path) -> Iterator[Any]:
    """The elements of a file that is one JSON list, without holding the list. Raises DatasetError."""
    with file.open(encoding="utf-8-sig") as stream:
        text, at, ended = stream.read(_PIECE).lstrip(), 1, False
        if not text.startswith("["):
            raise DatasetError(f"{file} is no JSON list of rows; put each row on a line of its own in a .jsonl file")
        may_end, comma = True, False  # before an element: may the list end here, and must a comma come first
        while True:
            at = _after_space(text, at)
            if at < len(text) and text[at] == "]" and may_end:
                return
            if comma and text[at : at + 1] == ",":
                at, comma, may_end = at + 1, False, False
                continue
            value, end = _element(text, at) if not comma else (None, None)
            if end is not None and (end < len(text) or ended):  # a number at the end of a piece may go on
                yield value
                at, comma, may_end = end, True, True
                continue
            text, at = text[at:], 0
            if ended or len(text) > MAX_ROW_CHARS or (comma and text):
                raise DatasetError(f"{file} is not valid JSON, or was cut off, near {_short(text[:40])}")
            more = stream.read(max(_PIECE, len(text)))
            text, ended = text + more, not more


def _element(text: str, at: int) -> tuple[Any, int | None]:
    """The JSON value that begins at a place, and where it ends; None where it is not whole."""
    try:
        return _DECODER.raw_decode(text, at)
    except ValueError:
        return None, None


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _csv_rows(file: Path) -> Iterator[Any]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        for row in csv.DictReader(stream, strict=True):
            if None in row:
                yield Flaw("", "has more fields than the header", "ragged row")
            else:
                yield row


def _parquet_rows(file: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    # Buffered: a page at a time, where a whole column of a row group of pictures would not fit.
    with pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False) as table:
        groups = (table.metadata.row_group(i).total_byte_size for i in range(table.metadata.num_row_groups))
        if (largest := max(groups, default=0)) > MAX_GROUP_BYTES:
            raise DatasetError(f"{file} has a row group of {largest} bytes, more than {MAX_GROUP_BYTES}: split it")
        for batch in table.iter_batches(batch_size=_BATCH, use_threads=False):
            yield from batch.to_pylist()


def _arrow_rows(file: Path) -> Iterator[Any]:
    import pyarrow as pa

    with pa.OSFile(str(file)) as stream:
        for batch in pa.ipc.open_stream(stream):
            for start in range(0, batch.num_rows, _BATCH):
                yield from batch.slice(start, _BATCH).to_pylist()


# --- the hub ----------------------------------------------------------------------------------------------------------


def _hub_rows(name: str, split: str | None) -> Iterator[tuple[str, Raw | Flaw]]:
    if not _HUB_ID.fullmatch(name):
        raise DatasetError(f"{name}: there is no such file or folder, and it is no hub id (owner/name)")
    whole, _, revision = name.partition("@")
    repository, _, config = whole.partition(":")
    yield from hub_rows(repository, split=split or "train", name=config or None, revision=revision or None)


def hub_rows(repository: str, **options: Any) -> Iterator[tuple[str, Raw | Flaw]]:
    """Rows of `datasets.load_dataset(repository, streaming=True, **options)`, media undecoded. Raises DatasetError."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise DatasetError(
            f"{repository}: there is no such file or folder; to read it from the hub install the extra: "
            "pip install 'palate[hub]'"
        ) from None
    try:
        stream = datasets.load_dataset(repository, streaming=True, **options)
        for column, feature in (stream.features or {}).items():
            if isinstance(feature, datasets.Image | datasets.Audio | datasets.Video):
                stream = stream.cast_column(column, type(feature)(decode=False))
        for number, raw in enumerate(stream):
            yield f"{repository} row {number}", raw
    except Exception as error:  # of the network, of the hub, of the files there: anything
        raise DatasetError(
            f"{repository}: there is no such file or folder, and the hub cannot serve it "
            f"({type(error).__name__}: {_short(str(error))})"
        ) from error


# --- writing ----------------------------------------------------------------------------------------------------------


@dataclass
class Written:
    """What a format wrote. rows: its records. left_out: pairs or rows that it cannot hold, by reason."""

    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
