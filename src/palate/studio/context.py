"""What all routes share: the store, the views of media, who may come in, and numbers that are kept for a moment."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from palate.store import Progress, Rater, Snapshot, Store
from palate.studio.files import Views
from palate.studio.joining import Guesses, TokenFile, cookie_name

HERE = Path(__file__).parent
VIEWS = "views"  # the folder of a project with media as raters get them
PROGRESS_SECONDS = 10.0  # how old the numbers of the whole project may be on a rater's page
MOST_BUSY = 0.05  # the part of the time that finding such numbers takes at most

Found = TypeVar("Found")


@dataclass(frozen=True)
class Wins:
    """How often the samples of one source were preferred to others': rate from 0 to 1, ties half, its interval, n."""

    source: str
    rate: float
    low: float
    high: float
    n: int


WinRates = Callable[[Store], Sequence[Wins]]
Export = Callable[[Store, Snapshot, Path], object]  # writes a snapshot's data into a folder


class Remembered(Generic[Found]):
    """A value that takes time to find, kept for so many seconds, or for longer where finding it took long.

    Whoever asks first after them finds it anew; others are given what there was, so that nobody waits for them.
    """

    def __init__(self, find: Callable[[], Found], seconds: float) -> None:
        self._find, self._seconds = find, seconds
        self._finding = threading.Lock()
        self._value: Found | None = None
        self._until = -math.inf

    def get(self) -> Found:
        value = self._value
        if value is not None and (time.monotonic() < self._until or not self._finding.acquire(blocking=False)):
            return value
        if value is None:
            self._finding.acquire()
        try:
            begun = time.monotonic()
            if self._value is None or begun >= self._until:
                self._value = self._find()
                ended = time.monotonic()
                self._until = ended + max(self._seconds, (ended - begun) / MOST_BUSY)
            return self._value
        finally:
            self._finding.release()


class Share:
    """How much of all that is wanted is done, from 0 to 1: counted seldom, with what came in since on top."""

    def __init__(self, store: Store) -> None:
        self._store, self._since = store, 0
        self._counted = Remembered(self._count, PROGRESS_SECONDS)

    def get(self) -> float:
        whole = self._counted.get()
        return min(1.0, (whole.votes + self._since) / whole.wanted) if whole.wanted else 0.0

    def add(self, judgements: int) -> None:
        """Known pairs and repeats too, until it is counted anew: a page that told them apart would give them away."""
        self._since += judgements

    def _count(self) -> Progress:
        counted = self._store.progress()
        self._since = 0
        return counted


class Studio:
    """See the module. win_rates: numbers of the dashboard, and export: its download, which a floor above makes.

    note: what raters who have nothing to judge are told where more is to come, empty where nothing is. None for a
    studio that is open for its own sake: who runs it decides when it is over.
    """

    def __init__(
        self,
        store: Store,
        win_rates: WinRates | None = None,
        export: Export | None = None,
        note: Callable[[], str] | None = None,
    ) -> None:
        self.store, self.win_rates, self.export, self.note = store, win_rates, export, note
        self.settings = store.settings
        self.cookie = cookie_name(store.folder)
        self.tokens = TokenFile(store.folder)
        self.guesses = Guesses()
        self.views = Views(store.folder / VIEWS)
        self.share = Share(store)
        self.pages = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=select_autoescape(default=True),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def page(self, name: str, request: Request | None = None, status: int = 200, **values: Any) -> HTMLResponse:
        """A page for whoever asks; without a request, for somebody without a session."""
        rater: Rater | None = getattr(request.state, "rater", None) if request else None
        shared = {
            "title": self.settings.title,
            "csrf": request.state.csrf if rater and request else "",
            "admin": rater is not None and rater.role == "admin",
            "choices": self.settings.choices,
            "ranking": self.settings.kind == "ranking",
            "show": self.settings.show,
        }
        return HTMLResponse(self.pages.get_template(name).render(shared | values), status)
