"""`palate label --plan`: what a wanted interval takes, and how raters did on known pairs so far. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from palate import planning, project
from palate.doors import raters
from palate.doors.hands import reading
from palate.store import StoreError


def plan(folder: Path, half_width: float, seconds: float | None = None) -> None:
    """Prints what an interval of so many points either way takes, by the project's settings and what it knows."""
    settings = project.read(folder)
    how: dict[str, Any] = {"votes_per_pair": settings.votes_per_comparison}
    how |= {"known_share": settings.known_share, "repeat_share": settings.repeat_share}
    took = [] if seconds is not None else _paces(folder)
    pace = seconds if seconds is not None else float(np.median(took)) if took else None
    how |= {} if pace is None else {"seconds_per_vote": pace}
    made = planning.plan(half_width, **how)
    told = "as raters took so far" if took else "as assumed" if seconds is None else "as given"
    print(f"{made}\n({3600 * made.hours / made.votes:.1f} s a vote, {told})")
    for line in raters.on_known_pairs(folder):
        print(line)


def _paces(folder: Path) -> list[float]:
    try:
        with reading(folder) as store:
            return [vote.seconds for vote in store.votes() if vote.seconds]
    except StoreError:  # nothing was added yet
        return []
