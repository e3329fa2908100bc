"""The commands of `palate dataset`: check any readable data, import it into Palate's own format, convert it to another.

What they need of a data set is in `palate.datasets` and `palate.checking`; here is what a command adds: progress, bad
media left out up to a stated share, and words.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from palate import checking, datasets, media, views
from palate.datasets import Reader
from palate.media import DatasetError, MediaError
from palate.reading import SPLITS
from palate.records import Medium, Preference
from palate.training.logs import Progress


def check(
    path: str,
    *,
    format: str | None = None,
    split: str | None = None,
    media_root: Path | None = None,
    max_bad: float = checking.MAX_BAD,
    against: str | None = None,
    as_json: bool = False,
) -> bool:
    """Prints what `checking.check` finds; whether the data are good. against: another path, or another split of it."""
    reader = datasets.open(path, format, split, media_root)
    other = None
    if against is not None:
        named = against.partition("_")[0] in SPLITS or not Path(against).exists()
        split_of_it = named and "/" not in against and not Path(path).is_file()
        other = datasets.open(path, format, against, media_root) if split_of_it else datasets.open(against, format)
    with _shown(reader.number, "row") as advance:
        found = checking.check(reader, max_bad=max_bad, against=other, progress=advance)
    print(json.dumps(found.json(), indent=1) if as_json else found)
    return found.good


OWN = "parquet"


def convert(
    source: str,
    out: Path,
    to: str = OWN,
    *,
    format: str | None = None,
    split: str | None = None,
    media_root: Path | None = None,
    limit: int | None = None,
    max_bad: float = checking.MAX_BAD,
    merge: bool = False,
) -> Path:
    """Rows of any readable format into Palate's own, or another that can be written; whole or not at all.

    Media are carried as bytes; bad ones, and bad rows, are left out and counted. Raises DatasetError, and leaves
    nothing, if they are more than the share `max_bad`. merge: pairs of a prompt that follow each other become one row.
    """
    reader = datasets.open(source, format, split, media_root, limit)
    usable = Usable(reader, max_bad)
    with _shown(reader.number, "row") as advance:
        rows = _counted(usable, advance)
        made = datasets.write(out, views.merged(rows) if merge else rows, to)
    left_out = "".join(f"; {count:,} {what} left out" for what, count in made.left_out.items() if count)
    print(f"{made.rows:,} {to} rows of {source} ({reader.format}) in {out}; {usable}{left_out}")
    return out


class Usable:
    """Rows whose media were looked at and are carried as bytes. Iterating raises at the end if too many were bad.

    A bad medium is masked; a row of which nothing is known any more is left out.
    """

    def __init__(self, reader: Reader, max_bad: float) -> None:
        self.reader, self.max_bad = reader, max_bad
        self.media = self.rows = self.dropped = 0
        self.bad = datasets.Flaws()

    def __iter__(self) -> Iterator[Preference]:
        for row in self.reader:
            self.rows += 1
            whole = self._whole(row)
            if whole is None:
                self.dropped += 1
            else:
                yield whole
        rows = self.rows + self.reader.flaws.total
        for bad, of, what in ((self.bad, self.media, "media"), (self.reader.flaws, rows, "rows")):
            if bad.total > self.max_bad * of:
                raise DatasetError(
                    f"{self.reader.source.name}: {bad.total:,} of {of:,} {what} are bad, more than {self.max_bad:.2%}: "
                    f"{bad}; mend them, or allow more by --max-bad"
                )

    def _whole(self, row: Preference) -> Preference | None:
        found: list[Medium | None] = []
        for k, (medium, exists) in enumerate(zip(row.media, row.mask, strict=True)):
            found.append(None)
            if medium is None or not exists:
                continue
            self.media += 1
            try:
                content = media.held(medium, self.reader.root)
                media.check(content)
                found[k] = content
            except MediaError as error:
                self.bad.add(datasets.Flaw(f"{row.where or row.id}, candidate {k}", str(error), error.kind))
        lost = [medium is None and exists for medium, exists in zip(found, row.mask, strict=True)]
        if any(lost):
            row = views.without(row, lost)
            if not views.says_something(row):
                return None
        return replace(row, media=tuple(found))

    def __str__(self) -> str:
        said = f"{self.bad.total:,} of {self.media:,} media bad" + (f" ({self.bad})" if self.bad.total else "")
        flaws = self.reader.flaws
        said += f", {flaws.total:,} rows bad ({flaws})" if flaws.total else ""
        return said + (f", {self.dropped:,} rows left out" if self.dropped else "")


def _counted(rows: Usable, advance: Any) -> Iterator[Preference]:
    for row in rows:
        yield row
        advance(1)


@contextlib.contextmanager
def _shown(total: int | None, what: str) -> Iterator[Any]:
    """What to call with each 1 that is done: a bar where the number is known, else a line at times."""
    if total is not None:
        with contextlib.closing(Progress(total, 0, what=what)) as bar:
            yield bar.advance
        return
    done, said = 0, time.monotonic()

    def advance(more: int) -> None:
        nonlocal done, said
        done += more
        if time.monotonic() - said > 10:
            said = time.monotonic()
            print(f"{what} {done:,}", file=sys.stderr, flush=True)

    yield advance
