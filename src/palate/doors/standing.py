"""Whether the rows that a run has listed still stand, so that going on with it reads no medium again.

They do where all that they were made of is as it was: the data's files by their names, sizes and times, the model, the
settings; and where every entry that they name is in the cache. A data set of a hub is read again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from palate import __version__, datasets
from palate.models import identity
from palate.models.geometry import Size
from palate.training.cache import TensorCache
from palate.training.processes import Processes
from palate.training.stored import StoredRows, write_whole

KNOWN_BY = "rows.made_of.json"  # beside the index, written after it and removed before


def made_of(reader: datasets.Reader, policy: Any, codec: str, words: str, **settings: Any) -> str | None:
    """A digest of all that an index is made of; None for data whose files are not here.

    codec, words: the model's identities. settings: whatever else the rows depend on, as JSON can say it.
    """
    source = reader.source
    if source.path is None:
        return None
    how = [__version__, source.name, source.split, str(source.media_root), reader.format, reader.limit]
    digest = hashlib.sha256(json.dumps([how, settings], sort_keys=True, default=str).encode())
    digest.update("\x1f".join([codec, words, identity.geometry(policy)]).encode())
    for place in dict.fromkeys(path.resolve() for path in (source.path, source.root) if path is not None):
        for name, size, time in _files(place):
            digest.update(f"\x1e{name}\x1f{size}\x1f{time}".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _files(place: Path) -> Iterator[tuple[str, int, int]]:
    """Name, bytes and time in ns of a file, or of all below a folder, in one order."""
    if place.is_file():
        facts = place.stat()
        yield place.name, facts.st_size, facts.st_mtime_ns
        return
    for folder, names, files in os.walk(place, followlinks=True):
        names.sort()
        for name in sorted(files):
            path = os.path.join(folder, name)  # noqa: PTH118  (a million of them)
            try:
                facts = os.stat(path)  # noqa: PTH116
            except OSError:  # a link to nothing
                continue
            yield os.path.relpath(path, place), facts.st_size, facts.st_mtime_ns


def note(index: Path, digest: str | None, sizes: Sequence[Size]) -> None:
    """Says what an index was made of. Raises StorageError, one line."""
    if digest is not None:
        with write_whole(index.with_name(KNOWN_BY)) as write:
            write(json.dumps({"made_of": digest, "sizes": list(sizes)}) + "\n")


def forget(index: Path) -> None:
    index.with_name(KNOWN_BY).unlink(missing_ok=True)


def standing(
    index: Path, digest: str | None, cache: TensorCache, processes: Processes
) -> tuple[StoredRows, list[Size]] | None:
    """The rows of an index that still stands, and the sizes of their media; None, in all processes, where it does not.

    digest: of the first process. Entries count as used now. One whose content is damaged is found when it is read.
    """
    held = index.with_name(KNOWN_BY)
    said = None
    if processes.first and digest is not None and held.is_file() and index.is_file():
        try:
            known = json.loads(held.read_text(encoding="utf-8"))
            said = json.dumps(known["sizes"]) if known["made_of"] == digest else None
        except (ValueError, KeyError, TypeError):
            said = None
    said = processes.tell(said)
    if said is None:
        return None
    rows, known_keys, missing = StoredRows(index, cache), set[str](), 0
    for place in range(processes.rank, len(rows), processes.world):
        line = rows.line(place)
        common = {line.cond, line.null} - known_keys
        missing += sum(not cache.stands(key) for key in [*line.media, *common] if key is not None)
        known_keys |= common
        if missing:
            break
    if processes.sums({"missing": (float(missing), 1.0)})["missing"][0]:
        return None
    return rows, [(height, width) for height, width in json.loads(said)]
