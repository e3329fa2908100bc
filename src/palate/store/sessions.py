"""Who sends the next request is mostly who sent the last: raters are kept by the hash of their token for a moment.

What this process changes of a rater holds at once. What another changes, which PostgreSQL allows, such as a token that
it revokes, holds here when SECONDS are over.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime

from palate.store.raters import Rater, digest

SECONDS = 1.5


class Sessions:
    """Raters by token, in memory; safe to use from many threads."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._kept: dict[str, tuple[Rater, float]] = {}  # until when, by the monotonic clock
        self._changes = 0
        self._lock = threading.Lock()

    def get(self, token: str) -> Rater | None:
        """Whose token it is, if that was found a moment ago."""
        rater, until = self._kept.get(digest(token), (None, 0.0))
        return rater if time.monotonic() < until else None

    @property
    def changes(self) -> int:
        """A number to be taken before a rater is looked up, and given along with what was found."""
        return self._changes

    def keep(self, token: str, rater: Rater | None, changes: int) -> None:
        """Keeps whom a token was found to be of, unless raters were changed since, or it is nobody's."""
        seconds = self.seconds
        if rater is not None and rater.expires is not None:
            seconds = min(seconds, (datetime.fromisoformat(rater.expires) - datetime.now(UTC)).total_seconds())
        if rater is None or seconds <= 0:
            return
        with self._lock:
            if changes == self._changes:
                self._kept[digest(token)] = rater, time.monotonic() + seconds

    def forget(self) -> None:
        """To be called when a change of a rater is stored: also what is being looked up now is not kept."""
        with self._lock:
            self._changes += 1
            self._kept = {}
