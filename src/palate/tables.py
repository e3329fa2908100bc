"""Raw rows of tables that others wrote, streamed: JSON, JSONL, CSV, parquet and Arrow files, or a hub id.

A row is a plain dict, with the place where it stands; a row that cannot be read is a `Flaw` and does not end the
stream. Memory holds a few rows, whatever the size of the file; nothing is executed and nothing unpickled.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from palate.media import DatasetError

Raw = dict[str, Any]
TABLES = (".jsonl", ".json", ".csv", ".parquet", ".arrow")
_OF_LINES = (".jsonl", ".csv")
MAX_ROW_CHARS = 64 * 2**20  # of one JSON row: a longer one is a bomb
MAX_GROUP_BYTES = 2 * 2**30  # of a row group of parquet; a larger one is a bomb, or is to be split
MAX_GROUP_VALUES = 2**26  # of a column of it: a run of equal values takes no bytes, yet memory
_BATCH, _BATCH_BYTES = 16, 64 * 2**20
_PIECE = 2**16
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Flaw:
    """A row that cannot be used. where: its file and number. kind: the reason without what is particular to the row."""

    where: str
    reason: str
    kind: str = "bad row"


def short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 60 else said[:57] + "..."


def table_rows(file: Path) -> Iterator[tuple[str, Raw | Flaw]]:
    """The rows of one table, by its ending, and where each stands: its line, or, in files without lines, row 0 and on.

    Raises DatasetError for another ending, or if the rest cannot be read.
    """
    reader = {
        ".jsonl": _jsonl_rows,
        ".json": _json_rows,
        ".csv": _csv_rows,
        ".parquet": _parquet_rows,
        ".arrow": _arrow_rows,
    }.get(file.suffix)
    if reader is None:
        raise DatasetError(f"{file} is no table: its name must end in {', '.join(TABLES)}")
    where = "its beginning"
    try:
        for place, raw in reader(file) if file.suffix in _OF_LINES else _numbered(reader(file)):
            where = f"{file.name} {place}"
            if isinstance(raw, Flaw):
                yield where, replace(raw, where=where)
            elif isinstance(raw, dict):
                yield where, raw
            else:
                yield where, Flaw(where, f"is no row of named fields but {short(raw)}")
    except DatasetError:
        raise
    except (ValueError, OSError, csv.Error, RecursionError) as error:  # pyarrow's errors are ValueErrors or OSErrors
        raise DatasetError(
            f"{file} cannot be read after {where} ({type(error).__name__}: {short(str(error))}): copy it again"
        ) from None


def _numbered(rows: Iterator[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"row {number}", row) for number, row in enumerate(rows))


def _jsonl_rows(file: Path) -> Iterator[tuple[str, Any]]:
    with file.open("rb") as lines:
        number = 0
        while line := lines.readline(MAX_ROW_CHARS):
            number += 1
            if not line.strip():
                continue
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                if len(line) >= MAX_ROW_CHARS:
                    raise DatasetError(f"{file} has a line of more than {MAX_ROW_CHARS} bytes") from None
                yield f"line {number}", Flaw("", f"is no JSON ({short(str(error))})", "no JSON")


def json_array(file: Path) -> Iterator[Any]:
    """The elements of a file that is one JSON list, without holding the list. Raises DatasetError."""
    try:
        yield from _json_rows(file)
    except (UnicodeDecodeError, RecursionError) as error:
        raise DatasetError(
            f"{file} cannot be read ({type(error).__name__}: {short(str(error))}): copy it again"
        ) from None


def _json_rows(file: Path) -> Iterator[Any]:
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
                raise DatasetError(f"{file} is not valid JSON, or was cut off, near {short(text[:40])}")
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


def _csv_rows(file: Path) -> Iterator[tuple[str, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.DictReader(stream, strict=True)
        for row in rows:
            ragged = Flaw("", "has more fields than the header", "ragged row") if None in row else None
            yield f"line {rows.line_num}", ragged or row


def _parquet_rows(file: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    # Buffered: a page at a time, where a whole column of a row group of pictures would not fit.
    with pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False) as table:
        check_groups(file, table.metadata)
        for batch in parquet_batches(table):
            yield from _rows_or_flaws(batch)


def check_groups(file: Path, metadata: Any) -> None:
    """Raises DatasetError for a parquet file with a row group that memory might not hold."""
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        if group.total_byte_size > MAX_GROUP_BYTES:
            size = f"{group.total_byte_size} bytes, more than {MAX_GROUP_BYTES}"
            raise DatasetError(f"{file} has a row group of {size}: split it")
        values = max((group.column(j).num_values for j in range(group.num_columns)), default=0)
        if values > MAX_GROUP_VALUES:
            raise DatasetError(f"{file} has a row group with {values} values in a column: split it")


def parquet_rows(table: Any) -> Iterator[Raw]:
    """The rows of an open `pyarrow.parquet.ParquetFile`."""
    for batch in parquet_batches(table):
        yield from batch.to_pylist()


def parquet_batches(table: Any) -> Iterator[Any]:
    """A few rows at a time, as record batches.

    A value in a dictionary may stand in every row of a batch: the larger it can be, the fewer rows are read at once.
    """
    groups = [table.metadata.row_group(i) for i in range(table.metadata.num_row_groups)]
    sizes = [group.column(j).total_uncompressed_size for group in groups for j in range(group.num_columns)]
    batch_size = max(1, min(_BATCH, _BATCH_BYTES // max(1, *sizes, 1)))
    for batch in table.iter_batches(batch_size=batch_size, use_threads=False):
        yield _plain(batch)


def _rows_or_flaws(batch: Any) -> Iterator[Raw | Flaw]:
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):  # of one row: the others are good
        for i in range(batch.num_rows):
            try:
                row: Raw = batch.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield Flaw("", "holds text that is not UTF-8", "not UTF-8")
            except (ValueError, OverflowError) as error:  # a time inside of another value, beyond Python's
                yield Flaw("", f"holds a value that Python cannot ({short(str(error))})", "beyond Python")
            else:
                yield row


def _plain(batch: Any) -> Any:
    """A batch without times and dates: Python cannot hold all that Arrow can, and no format needs them."""
    from pyarrow import types

    names = [field.name for field in batch.schema if not types.is_temporal(field.type)]
    return batch if len(names) == batch.num_columns else batch.select(names)


def _arrow_rows(file: Path) -> Iterator[Any]:
    import pyarrow as pa

    with pa.OSFile(str(file)) as stream:
        for batch in pa.ipc.open_stream(stream):
            for start in range(0, batch.num_rows, _BATCH):
                yield from _rows_or_flaws(_plain(batch).slice(start, _BATCH))


# --- the hub ----------------------------------------------------------------------------------------------------------


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
        if stream.features is not None:
            stream = stream.decode(False)
        for number, raw in enumerate(stream):
            yield f"{repository} row {number}", raw
    except Exception as error:  # of the network, of the hub, of the files there: anything
        raise DatasetError(
            f"{repository}: there is no such file or folder, and the hub cannot serve it "
            f"({type(error).__name__}: {short(str(error))})"
        ) from error
