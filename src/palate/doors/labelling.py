"""`palate label`: the studio, with the win rates and the export of its dashboard; also open while rounds wait."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from palate import views
from palate.doors import awaited
from palate.evaluation.win_rate import win_rate_of
from palate.records import Ranking, Vote
from palate.store import Snapshot, Store
from palate.studio.context import Wins
from palate.studio.serve import beside, serve

POLL_SECONDS = 0.5
RESAMPLES = 1000  # of the bootstrap; the dashboard shows whole percents


def label(
    folder: Path, *, host: str, port: int, names: Iterable[str], raters: int | None, open_browser: bool = False
) -> None:
    serve(
        folder,
        host=host,
        port=port,
        names=names,
        raters=raters,
        open_browser=open_browser,
        win_rates=win_rates_so_far,
        export=hand_out,
    )


class Waiting:
    """A studio that is open while something waits for its votes.

    base: its address. note: what raters are told who have nothing to judge; empty when nothing more is to come.
    """

    def __init__(self, note: str = "") -> None:
        self.base, self.note = "", note

    def tell(self, note: str) -> None:
        self.note = note

    def wait(self, store: Store, batch: str) -> None:
        """Returns when each comparison of a batch has the raters that it wants; says how far they are."""
        seen = told = -1
        while True:
            votes = store.progress().votes  # first: what comes in while counting is looked at again
            if votes != seen:
                seen, missing = votes, awaited.lacking(store, batch)
                if not missing:
                    return
                if missing != told:
                    print(f"{missing} judgement{'s' * (missing != 1)} of {batch} to go at {self.base}")
                    told = missing
            time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def open_studio(store: Store, *, port: int = 8765, note: str = "") -> Iterator[Waiting]:
    """The studio of a store that is open for writing, as long as the block. note: the first, see `Waiting`."""
    waiting = Waiting(note)
    with beside(
        store, port=port, win_rates=win_rates_so_far, export=hand_out, note=lambda: waiting.note
    ) as waiting.base:
        yield waiting


def hand_out(store: Store, taken: Snapshot, folder: Path) -> None:
    """A snapshot's data, as `palate dataset export` writes it where nothing more is asked."""
    from palate.doors.giving import write  # pyarrow takes a moment, which the studio's start has not got

    write(store, taken, folder)


def win_rates_so_far(store: Store) -> list[Wins]:
    """Each source against all others on the same prompts, by the first question's votes and rankings, best first.

    Ties count half; "both bad", skips, repeats and known pairs do not. The interval is over prompts.
    """
    dimension = next(iter(store.settings.questions))
    known = {comparison.id for comparison in store.comparisons() if comparison.expected}
    samples = {sample.id: sample for sample in store.samples()}
    won: dict[str, tuple[list[float], list[str]]] = defaultdict(lambda: ([], []))
    judgements: list[Vote | Ranking] = [*store.votes(dimension), *store.rankings(dimension)]
    for judgement in judgements:
        if judgement.repeat or judgement.comparison in known:
            continue
        for a, b, share in views.outcomes(judgement):
            first, second = samples[a], samples[b]
            if first.source != second.source:
                for sample, rate in ((first, share), (second, 1 - share)):
                    won[sample.source][0].append(rate)
                    won[sample.source][1].append(sample.prompt)
    found = []
    for source, (rates, prompts) in won.items():
        wins = win_rate_of(np.asarray(rates), prompts, resamples=RESAMPLES)
        found.append(Wins(source, wins.rate, *wins.ci95, wins.n))
    return sorted(found, key=lambda wins: (-wins.rate, wins.source))
