"""How far a project's scorers agree with its people: which of them may stand in for them, and in what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from palate import views
from palate.config import ConfigError
from palate.doors.hands import reading
from palate.evaluation import accuracy
from palate.evaluation.win_rate import Mean
from palate.store import Store

Said = dict[tuple[str, str], dict[str, float]]  # two samples -> rater -> 1 the first, 0 the second, .5 neither
PERSON = "one person, against the others"


@dataclass(frozen=True)
class Agreement:
    """judge: a score, or PERSON. pairs: judged by it and by people. tau, rho: rank correlations with them."""

    judge: str
    pairs: int
    accuracy: accuracy.Accuracy
    tau: float
    rho: float


def table(folder: Path, dimension: str | None = None) -> None:
    """Prints how often each stored score says what most people say. dimension: of the question, the first by default.

    Raises ConfigError for a question that is not asked, and where nothing can be compared.
    """
    with reading(folder) as store:
        questions = list(store.settings.questions)
        asked = dimension or questions[0]
        if asked not in questions:
            raise ConfigError(f"{folder} asks no question {asked!r}; it asks {', '.join(questions)}")
        found = agreements(store, asked)
    if not any(one.judge != PERSON for one in found):
        raise ConfigError(
            f"{folder} holds no pair that people judged ({asked}) and a scorer scored: "
            f"`palate score --project {folder}` scores, `palate label` lets people judge"
        )
    rows = [("", "pairs", "right, ties left out", "right, ties told", "tau", "rho")]
    rows += [
        (one.judge, str(one.pairs), _share(one.accuracy.without_ties), _share(one.accuracy.with_ties),
         f"{one.tau:.2f}", f"{one.rho:.2f}")
        for one in found
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _share(found: Mean | None) -> str:
    return f"{found.mean:.0%} [{max(found.ci95[0], 0):.0%}, {min(found.ci95[1], 1):.0%}]" if found else "-"


def agreements(store: Store, dimension: str) -> list[Agreement]:
    """A person's agreement with the others, if pairs have several, then every score's with most people, best first.

    Known pairs are left out: they are easy. What both find bad is a tie.
    """
    said, prompt_of = _said(store, dimension), {sample.id: sample.prompt for sample in store.samples()}
    values: dict[str, dict[str, float]] = defaultdict(dict)
    for score in store.scores():
        name = score.source if score.source.endswith(score.dimension) else f"{score.source} {score.dimension}"
        values[name][score.sample] = score.value
    found = [one for name, known in values.items() if (one := _of_scores(name, known, said, prompt_of))]
    found.sort(key=lambda one: one.accuracy.without_ties.mean if one.accuracy.without_ties else 0.0, reverse=True)
    return [*_of_people(said, prompt_of), *found]


def _of_scores(name: str, known: Mapping[str, float], said: Said, prompt_of: Mapping[str, str]) -> Agreement | None:
    pairs = [pair for pair in said if not np.isnan([known.get(sample, np.nan) for sample in pair]).any()]
    if not pairs:
        return None
    people = [float(np.mean(list(said[pair].values()))) for pair in pairs]
    most = (np.sign(np.round(people, 9) - 0.5) + 1) / 2
    off = [known[a] - known[b] for a, b in pairs]
    right = accuracy.pairwise(most, off, [prompt_of[a] for a, _ in pairs], crossed=True)
    return Agreement(name, len(pairs), right, *accuracy.correlations(people, off))


def _of_people(said: Said, prompt_of: Mapping[str, str]) -> Iterator[Agreement]:
    """What a scorer can at best be held to: each rater against most of the others who judged the same pair."""
    rows = []
    for (first, _), given in said.items():
        for rater, own in given.items() if len(given) > 1 else ():
            others = np.mean([value for name, value in given.items() if name != rater])
            rows.append((float(others), own - 0.5, prompt_of[first]))
    if rows:
        said_by_others, off, prompts = (list(column) for column in zip(*rows, strict=True))
        most = (np.sign(np.round(said_by_others, 9) - 0.5) + 1) / 2
        right = accuracy.pairwise(most, off, prompts, threshold=0.0)
        pairs = sum(len(given) > 1 for given in said.values())
        yield Agreement(PERSON, pairs, right, *accuracy.correlations(said_by_others, off))


def _said(store: Store, dimension: str) -> Said:
    """What each rater said of each pair of samples, first answers only."""
    tests = {made.id for made in store.comparisons() if made.expected}
    said: Said = defaultdict(dict)

    def note(a: str, b: str, value: float, rater: str) -> None:
        first, second = sorted((a, b))
        said[first, second].setdefault(rater, value if first == a else 1.0 - value)

    for vote in store.votes(dimension):
        if not vote.repeat and vote.comparison not in tests and vote.choice != "skip":
            note(vote.a, vote.b, {"a": 1.0, "b": 0.0}.get(vote.choice, 0.5), vote.source)
    for ranking in store.rankings():
        if ranking.dimension == dimension and not ranking.repeat and ranking.comparison not in tests:
            for a, b, share in views.outcomes(ranking):
                note(a, b, share, ranking.source)
    return dict(said)
