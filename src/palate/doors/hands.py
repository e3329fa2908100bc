"""Changes to a project that may be in the studio: made in its database, or, while a studio has it open, by asking that.

SQLite has one writing process; PostgreSQL any number, and there nothing is asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from palate import project
from palate.durable import StorageError
from palate.store import Amendment, Store
from palate.store.database import FILE
from palate.studio.joining import forget, shut_out
from palate.studio.reach import Desk, desk
from palate.studio.upkeep import AT_ONCE

WHO = "palate project"  # the source of what is said by commands
KNOWN = "known pair"  # the source of samples that came in as files of known pairs


@dataclass(frozen=True)
class Hand:
    """store: of the project, to be read; to be written only where `studio`, which then has it open, is None."""

    store: Store
    studio: Desk | None

    def amend(self, amendments: Sequence[Amendment]) -> int:
        """How many comparisons were changed. Raises StoreError or ReachError."""
        if self.studio is None:
            return self.store.amend(amendments, WHO)
        changed = 0
        for start in range(0, len(amendments), AT_ONCE):
            part = [asdict(made) for made in amendments[start : start + AT_ONCE]]
            reply = self.studio.post("/admin/amend", {"amendments": part})
            changed += int(reply["changed"])
        return changed

    def revoke(self, rater: str) -> None:
        if self.studio is None:
            shut_out(self.store, rater)
        else:
            self.studio.post("/admin/revoke", {"rater": rater})

    def erase(self, rater: str, votes: bool) -> int:
        """How many facts were deleted."""
        if self.studio is None:
            return forget(self.store, rater, votes)
        return int(self.studio.post("/admin/erase", {"rater": rater, "votes": votes})["removed"])


@contextlib.contextmanager
def hand(folder: Path) -> Iterator[Hand]:
    """A hand on a project. Raises StorageError where something else than a studio has it open for writing."""
    with contextlib.ExitStack() as held:
        studio = None
        try:
            store = held.enter_context(Store.open(folder))
        except StorageError:  # of a disk as well: then there is no studio
            if not (folder / FILE).is_file():
                raise
            store = held.enter_context(Store.open(folder, write=False))
            if (studio := desk(store)) is None:
                raise
        yield Hand(store, studio)


def reading(folder: Path, *, to_note: bool = False) -> Store:
    """A project to be read, also while a studio is running. to_note: a snapshot's name, for which it is written."""
    settings = project.read(folder)
    if project.database_url(folder, settings) is not None or to_note:
        return Store.open(folder)
    return Store.open(folder, write=False)
