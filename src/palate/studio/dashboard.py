"""The dashboard of whoever runs the study: how far it is, how far raters agree, who wins so far.

Its buttons change things by `upkeep`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from palate import agreement, views
from palate.store import Progress, Rater
from palate.studio.context import Remembered, Studio, Wins

FINDINGS_SECONDS = 15.0  # bootstraps take a moment; pages that are reloaded in the meantime show the same numbers


@dataclass(frozen=True)
class Findings:
    """What the votes say, at one moment. alphas: by question, None where nothing was judged twice."""

    progress: Progress
    alphas: dict[str, agreement.Alpha | None]
    raters: dict[str, agreement.Rater]
    wins: Sequence[Wins]


def routes(studio: Studio) -> APIRouter:
    router, store = APIRouter(prefix="/admin"), studio.store
    findings = Remembered(Finder(studio).find, FINDINGS_SECONDS)

    @router.get("")
    def dashboard(request: Request) -> HTMLResponse:
        found = findings.get()
        lines = [line(rater, found) for rater in store.raters()]
        lines.sort(key=lambda one: (one["revoked"], -one["votes"], one["name"]))
        return studio.page(
            "dashboard.html",
            request,
            found=found,
            lines=lines,
            questions=studio.settings.questions,
            votes_per=studio.settings.votes_per_comparison,
            folder=str(store.folder),
            me=request.state.rater.id,
        )

    studio.pages.filters |= {"percent": percent, "known": lambda number: number is not None and not math.isnan(number)}
    studio.pages.globals["bar"] = bar
    return router


class Finder:
    """Finds what the votes say, anew only where a fact came, was amended or erased since."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._marks: Mapping[str, int] | None = None
        self._found: Findings | None = None

    def find(self) -> Findings:
        marks = self.studio.store.marks()  # first: what comes in meanwhile is looked at next time
        if self._found is None or marks != self._marks:
            self._found, self._marks = find(self.studio), marks
        else:
            self._found = replace(self._found, progress=self.studio.store.progress())
        return self._found


def find(studio: Studio) -> Findings:
    """From all votes: seconds of work where there are tens of thousands."""
    store, questions = studio.store, studio.settings.questions
    votes, comparisons = list(store.votes()), list(store.comparisons())
    prompt_of = {sample: comparison.prompt for comparison in comparisons for sample in comparison.samples}
    known = {comparison.id for comparison in comparisons if comparison.expected}
    rankings = list(store.rankings())
    pairs = chain(votes, *map(views.as_votes, rankings))
    judged = [vote for vote in pairs if vote.comparison not in known]
    first = next(iter(questions))
    return Findings(
        store.progress(),
        {name: agreement.alpha(judged, name, prompt_of=prompt_of) for name in questions},
        {rater.id: rater for rater in agreement.raters(votes, comparisons, first, rankings=rankings)},
        studio.win_rates(store) if studio.win_rates else (),
    )


def line(rater: Rater, found: Findings) -> dict[str, Any]:
    """A row of the table of raters."""
    work = found.raters.get(rater.id)
    return {
        "id": rater.id,
        "name": rater.name,
        "role": rater.role,
        "revoked": rater.revoked,
        "votes": work.votes if work else found.progress.raters.get(rater.id, 0),
        "work": work,
    }


def percent(share: float) -> str:
    """`-` where nothing is known."""
    return "–" if math.isnan(share) else f"{100 * share:.0f}%"


def bar(value: float, low: float = math.nan, high: float = math.nan, *, even: float | None = None) -> dict[str, Any]:
    """Places in a bar 100 wide of a value from 0 to 1 and its interval, for the template's SVG."""

    def at(share: float) -> float:
        return round(100 * min(1.0, max(0.0, share)), 2)

    known = not (math.isnan(low) or math.isnan(high))
    return {
        "at": at(value) if not math.isnan(value) else None,
        "span": (at(low), max(0.5, round(at(high) - at(low), 2))) if known else None,
        "even": at(even) if even is not None else None,
    }
