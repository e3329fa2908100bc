"""Palate's own format of preference data: a folder of parquet shards and a `manifest.json`, one row per prompt.

    write("pairs", rows)                 # rows: palate.records.Preference, streamed
    for row in read("pairs"): ...        # lazily, media undecoded
    picture = palate.media.decode(row.media[0], root="pairs")

A medium in a row is `{bytes | path, type}`; paths are relative to the folder and may not leave it. The manifest is
written last: a folder without one was not finished. Nothing in the folder is executed, and nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from palate.media import DatasetError, inside, medium_bytes
from palate.reading import Source, converted
from palate.records import Aspect, Medium, Preference, RecordError
from palate.tables import Flaw, check_groups, parquet_rows

FORMAT, VERSION = "palate-preferences", 2
READS = (1, 2)  # version 1 had no `aspects`
SHARD_BYTES = 400 * 2**20
_GROUP_ROWS, _GROUP_BYTES = 256, 32 * 2**20

_MATRIX = pa.list_(pa.list_(pa.float64()))
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "prompt": pa.string(),
        "media": pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string(), "type": pa.string()})),
        "mask": pa.list_(pa.bool_()),
        "prefer": _MATRIX,
        "votes": _MATRIX,
        "scores": _MATRIX,
        "weight": pa.float64(),
        "sources": pa.list_(pa.string()),
        "seeds": pa.list_(pa.int64()),
        "aspects": pa.list_(pa.struct({"dimension": pa.string(), "prefer": _MATRIX, "votes": _MATRIX})),
    }
)
REQUIRED = ("prompt", "media", "prefer")  # what is left out of the others is filled as `Preference` says


@dataclass(frozen=True)
class Manifest:
    """What a folder holds. hash: of all shards and dimension names. shards: file, rows, bytes and sha256 of each."""

    rows: int
    dimensions: tuple[str, ...]
    hash: str
    shards: tuple[dict[str, Any], ...]
    format: str = FORMAT
    version: int = VERSION


# --- writing ----------------------------------------------------------------------------------------------------------


def write(
    folder: str | Path,
    rows: Iterable[Preference],
    *,
    media_root: str | Path | None = None,
    keep_paths: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Manifest:
    """Write rows as they come; memory holds one row group. All rows must name the same dimensions.

    Media given as paths are read from `media_root` and stored as bytes; with `keep_paths` they stay paths, relative to
    `folder`, where the files must already be. Shards and manifest are written aside, synced and renamed, the manifest
    last. Raises FileExistsError if the folder already holds a finished data set.
    """
    folder = _begun(folder)
    root = folder if keep_paths else media_root
    dimensions: tuple[str, ...] | None = None
    shards: list[dict[str, Any]] = []
    shard = _Shard(folder, 0)
    try:
        for number, row in enumerate(rows):
            dimensions = row.dimensions if dimensions is None else dimensions
            if row.dimensions != dimensions:
                raise RecordError("dimensions", f"are {row.dimensions}, those before it {dimensions}", f"row {number}")
            shard.add(_to_dict(row, root, keep_paths, f"row {number}"))
            if shard.bytes >= shard_bytes:
                shards.append(shard.close())
                shard = _Shard(folder, len(shards))
        if shard.rows or not shards:
            shards.append(shard.close())
    except BaseException:
        for done in shards:
            (folder / done["file"]).unlink(missing_ok=True)
        raise
    finally:
        shard.abandon()
    return _finished(folder, shards, dimensions or ())


def join(folder: str | Path, parts: Iterable[str | Path]) -> Manifest:
    """One data set of several finished ones, in their order. Their shards are not written anew: the files are shared
    with the parts where the disk can (hard links), else copied, and the parts stay as they are.

    Raises FileExistsError as `write` does, RecordError if the parts do not name the same dimensions.
    """
    folder = _begun(folder)
    shards: list[dict[str, Any]] = []
    dimensions: tuple[str, ...] | None = None
    for part in map(Path, parts):
        facts = manifest(part)
        dimensions = facts.dimensions if dimensions is None else dimensions
        if facts.dimensions != dimensions:
            raise RecordError("dimensions", f"are {facts.dimensions}, those before {dimensions}", str(part))
        for shard in facts.shards:
            name = f"part-{len(shards):05d}.parquet"
            try:
                os.link(part / shard["file"], folder / name)
            except OSError:  # another disk, or one without links
                shutil.copyfile(part / shard["file"], folder / f"{name}.unfinished")
                _publish(folder / f"{name}.unfinished", folder / name)
            shards.append({**shard, "file": name})
    return _finished(folder, shards, dimensions or ())


def _begun(folder: str | Path) -> Path:
    """The folder, without what a writing that was cut off left in it."""
    folder = Path(folder)
    if (folder / "manifest.json").exists():
        raise FileExistsError(f"{folder} already holds preference data: choose another folder or remove that one")
    folder.mkdir(parents=True, exist_ok=True)
    for stale in [*folder.glob("part-*.parquet"), *folder.glob("*.unfinished")]:
        stale.unlink()
    return folder


def _finished(folder: Path, shards: Sequence[dict[str, Any]], dimensions: tuple[str, ...]) -> Manifest:
    """Writes the manifest of shards that are there."""
    manifest = Manifest(sum(s["rows"] for s in shards), dimensions, _hash(shards, dimensions), tuple(shards))
    temporary = folder / "manifest.json.unfinished"
    temporary.write_text(json.dumps(asdict(manifest), indent=1) + "\n")
    _publish(temporary, folder / "manifest.json")
    return manifest


class _Shard:
    """One parquet file in the making."""

    def __init__(self, folder: Path, number: int) -> None:
        self.path = folder / f"part-{number:05d}.parquet"
        self.temporary = self.path.with_name(self.path.name + ".unfinished")
        self.writer: pq.ParquetWriter | None = None
        self.waiting: list[dict[str, Any]] = []
        self.waiting_bytes = self.bytes = self.rows = 0

    def add(self, row: dict[str, Any]) -> None:
        size = sum(len(medium["bytes"] or b"") for medium in row["media"] if medium)
        self.waiting.append(row)
        self.rows, self.bytes, self.waiting_bytes = self.rows + 1, self.bytes + size, self.waiting_bytes + size
        if len(self.waiting) >= _GROUP_ROWS or self.waiting_bytes >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self.writer is None:
            # Dictionaries only help text that repeats; on pictures they cost a pass and memory.
            self.writer = pq.ParquetWriter(
                self.temporary, SCHEMA, compression="zstd", use_dictionary=["sources.list.element"]
            )
        self.writer.write_table(pa.Table.from_pylist(self.waiting, SCHEMA))
        self.waiting, self.waiting_bytes = [], 0

    def close(self) -> dict[str, Any]:
        self._flush()
        assert self.writer is not None
        self.writer.close()
        self.writer = None
        facts = {"rows": self.rows, "bytes": self.temporary.stat().st_size, "sha256": _sha256(self.temporary)}
        _publish(self.temporary, self.path)
        return {"file": self.path.name, **facts}

    def abandon(self) -> None:
        """After an error; nothing to do for a shard that was closed or never begun."""
        if self.writer is not None:
            self.writer.close()
        self.temporary.unlink(missing_ok=True)


def _to_dict(row: Preference, root: str | Path | None, keep_paths: bool, where: str) -> dict[str, Any]:
    media: list[dict[str, Any] | None] = []
    for medium in row.media:
        if medium is not None and medium.path is not None:
            if root is None:
                raise DatasetError(f"{where}: medium {medium.path!r} is a path; say where it starts with media_root=")
            content = None if keep_paths else medium_bytes(medium, root)
            if keep_paths:
                inside(root, medium.path)
            media.append({"bytes": content, "path": medium.path if keep_paths else None, "type": medium.type})
        else:
            media.append({"bytes": medium.bytes, "path": None, "type": medium.type} if medium else None)
    aspects = [asdict(aspect) for aspect in row.aspects]
    return {**{name: getattr(row, name) for name in SCHEMA.names}, "media": media, "aspects": aspects}


def _publish(temporary: Path, final: Path) -> None:
    """Sync, rename, sync the folder: after this the file is there whole, or not at all."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(final)
    handle = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(shards: Sequence[dict[str, Any]], dimensions: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([[s["sha256"] for s in shards], list(dimensions)]).encode()).hexdigest()


# --- reading ----------------------------------------------------------------------------------------------------------


def manifest(folder: str | Path) -> Manifest:
    """A folder's manifest. Raises DatasetError if it is missing, unreadable or of another format or version."""
    path = Path(folder) / "manifest.json"
    try:
        found = json.loads(path.read_text())
        if found["format"] != FORMAT or found["version"] not in READS:
            raise DatasetError(
                f"{path} is {found['format']} version {found['version']}; this Palate reads {FORMAT} version {VERSION}"
            )
        for shard in found["shards"]:
            if not re.fullmatch(r"[\w.-]+\.parquet", shard["file"]):
                raise DatasetError(f"{path} names the shard {shard['file']!r}, which is not a plain file name")
        names = ("file", "rows", "bytes", "sha256")
        shards = tuple({name: shard[name] for name in names} for shard in found["shards"])
        return Manifest(found["rows"], tuple(found["dimensions"]), found["hash"], shards)
    except FileNotFoundError:
        raise DatasetError(
            f"{path} is missing: this is no preference data, or its writing was cut off; write or copy it again"
        ) from None
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatasetError(f"{path} cannot be read ({error!r}): write or copy the data again") from None


def read(folder: str | Path) -> Iterator[Preference]:
    """The rows in order, one at a time; media are bytes or paths, see `decode`.

    The manifest, and every shard's size, columns and row count, are checked before the first row.
    Raises DatasetError naming the shard; RecordError naming shard, row and field.
    """
    folder = Path(folder)
    facts = manifest(folder)
    for shard in facts.shards:
        _open(folder, shard).close()
    return (_to_row(raw, facts.dimensions, where) for where, raw in _raw_rows(folder, facts))


def sniff(source: Source) -> bool:
    return source.path is not None and (source.path / "manifest.json").is_file()


def rows(source: Source) -> Iterator[Preference | Flaw]:
    """As `read`, and a row that cannot be is a Flaw."""
    folder = source.local
    facts = manifest(folder)
    for shard in facts.shards:
        _open(folder, shard).close()
    for where, raw in _raw_rows(folder, facts):
        yield converted(lambda raw, where: _to_row(raw, facts.dimensions, where), raw, where)


def count(source: Source) -> int:
    return manifest(source.local).rows


def problems(source: Source) -> list[str]:
    """Shards that are not the files that were written, and a manifest that was edited."""
    folder, facts = source.local, manifest(source.local)
    found = [
        f"{shard['file']} is not the file that was written (sha256 differs): copy it again"
        for shard in facts.shards
        if (folder / shard["file"]).is_file() and _sha256(folder / shard["file"]) != shard["sha256"]
    ]
    if _hash(facts.shards, facts.dimensions) != facts.hash:
        found.append("manifest.json does not agree with its own hash: it was edited, or mixes two data sets")
    return found


def _raw_rows(folder: Path, facts: Manifest) -> Iterator[tuple[str, dict[str, Any]]]:
    for shard in facts.shards:
        number = 0
        with _open(folder, shard) as file:
            try:
                for raw in parquet_rows(file):
                    yield f"{shard['file']} row {number}", raw
                    number += 1
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise DatasetError(
                    f"{folder / shard['file']} is damaged from row {number} on ({error}): write or copy it again"
                ) from error


def _open(folder: Path, shard: dict[str, Any]) -> pq.ParquetFile:
    path = folder / shard["file"]
    if not path.is_file():
        raise DatasetError(f"{path} is missing, though manifest.json lists it: copy it again")
    if (size := path.stat().st_size) != shard["bytes"]:
        raise DatasetError(f"{path} has {size} bytes, manifest.json says {shard['bytes']}: write or copy it again")
    try:
        file = pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} cannot be read ({error}): write or copy it again") from error
    try:
        _check_columns(path, file.schema_arrow)
        meta = file.metadata
        if meta.num_rows != shard["rows"]:
            raise DatasetError(f"{path} has {meta.num_rows} rows, manifest.json says {shard['rows']}: copy it again")
        check_groups(path, meta)
    except BaseException:
        file.close()
        raise
    return file


def _check_columns(path: Path, schema: pa.Schema) -> None:
    missing = [name for name in REQUIRED if name not in schema.names]
    unknown = [name for name in schema.names if name not in SCHEMA.names]
    problems = [f"lacks {', '.join(missing)}"] if missing else []
    problems += [f"has unknown {', '.join(unknown)}"] if unknown else []
    for name in schema.names:
        if name in SCHEMA.names and (found := _family(schema.field(name).type)) != _family(SCHEMA.field(name).type):
            problems.append(f"has {name} as {found}, not {_family(SCHEMA.field(name).type)}")
    if len(set(schema.names)) != len(schema.names):
        problems.append("has a column twice")
    if problems:
        raise DatasetError(f"{path} has the wrong columns: it {'; it '.join(problems)}")


def _family(kind: pa.DataType) -> str:
    """A type without its width: what other writers of parquet may choose differently."""
    types = pa.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return f"list<{_family(kind.value_type)}>"
    if types.is_struct(kind):
        return "{" + ", ".join(sorted(f"{f.name}: {_family(f.type)}" for f in kind)) + "}"
    if types.is_dictionary(kind):
        return _family(kind.value_type)
    if types.is_floating(kind):
        return "number"
    if types.is_integer(kind):
        return "integer"
    if types.is_string(kind) or types.is_large_string(kind):
        return "text"
    if types.is_binary(kind) or types.is_large_binary(kind):
        return "bytes"
    return str(kind)


def _to_row(raw: dict[str, Any], dimensions: tuple[str, ...], where: str) -> Preference:
    try:
        media = tuple(medium and Medium(medium["type"], medium["bytes"], medium["path"]) for medium in raw.pop("media"))
    except (RecordError, TypeError) as error:
        reason = error.reason if isinstance(error, RecordError) else "must be a list"
        raise RecordError("media", reason, where) from None
    given = {name: value for name, value in raw.items() if value is not None}
    for name in ("prompt", "prefer"):
        if name not in given:
            raise RecordError(name, "is null", where)
    if "aspects" in given:
        given["aspects"] = tuple(Aspect(a["dimension"], a["prefer"], a["votes"] or ()) for a in given["aspects"])
    return Preference(media=media, dimensions=dimensions, where=where, **given)
