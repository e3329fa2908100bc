"""Who is asked about samples of a project: people in the studio, simulated ones, or scorers.

An asker is called with a batch of comparisons and returns when each has the votes that it wants. Whatever it was doing,
the votes that were given are in the store: called again it asks for what is missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from palate import kinds
from palate.doors import shown
from palate.doors.awaited import missing, question, votes_of
from palate.media import MediaError
from palate.models.contracts import Media, Scorer
from palate.records import Choice, Comparison, Sample, Vote, now
from palate.store import Store
from palate.worlds.shapes import annotators

PEOPLE = 5  # simulated ones


class AskingError(ValueError):
    """Something cannot be shown, or judged; the message is one line."""


class Asker(Protocol):
    """Gets the votes that a batch of comparisons wants."""

    def __call__(self, store: Store, batch: str) -> None: ...


def add(store: Store, prompts: Sequence[str], media: Sequence[Media], source: str, seed: int) -> list[str]:
    """Adds n media, each of its prompt, to the project.

    Returns the samples' ids [n], made of what is shown, so that the same medium again is the same sample.
    """
    at = now()
    made = [_sample(store, prompt, medium, source, seed, at) for prompt, medium in zip(prompts, media, strict=True)]
    known = {sample.id for sample in store.samples()}
    store.add_samples({sample.id: sample for sample in made if sample.id not in known}.values())
    return [sample.id for sample in made]


def show(
    store: Store, prompts: Sequence[str], ids: Sequence[str], batch: str, *, wanted: int, pairs: int | None = None
) -> None:
    """Has people compare samples [n] of prompts [n]: pairs of every prompt become comparisons of the batch.

    pairs: of a prompt, those first in an order keyed by what they are; None for all. wanted: judgements of each.
    """
    groups: dict[str, dict[str, None]] = {}
    for prompt, name in zip(prompts, ids, strict=True):
        groups.setdefault(prompt, {})[name] = None
    known = {comparison.id for comparison in store.comparisons(batch=batch)}
    made = (
        comparison
        for prompt, group in groups.items()
        for comparison in shown.comparisons(prompt, list(group), batch=batch, wanted=wanted, most=pairs)
    )
    store.add_comparisons(comparison for comparison in made if comparison.id not in known)


def _sample(store: Store, prompt: str, medium: Media, source: str, seed: int, at: str) -> Sample:
    made = kinds.written(medium)
    content, key = made.bytes or b"", hashlib.sha256(f"{source}\x1f{prompt}".encode()).digest()
    name = hashlib.blake2b(content, digest_size=12, key=key)
    return Sample(name.hexdigest(), prompt, store.add_media(content, made.type), source, at, seed)


def _looked_at(store: Store, asked: Iterable[Comparison]) -> tuple[list[Sample], list[Media]]:
    """The samples of pairs, both of each, and their decoded media."""
    return kept(store, [name for comparison in asked for name in comparison.samples])


def kept(store: Store, wanted: Sequence[str]) -> tuple[list[Sample], list[Media]]:
    """Samples by their ids, and their decoded media. Raises AskingError for one that cannot be shown."""
    known = {sample.id: sample for sample in store.samples()}
    decoded: dict[str, Media] = {}
    for name in dict.fromkeys(wanted):
        try:
            decoded[name] = kinds.read(known[name].medium, store.folder)
        except MediaError as error:
            raise AskingError(f"sample {name} of {store.folder} cannot be shown: {error}") from None
    return [known[name] for name in wanted], [decoded[name] for name in wanted]


def laid_out(store: Store, sample: Sample, folder: Path, name: str) -> str:
    """Copies a sample's medium into a folder as it is, for a page to show; the file's name there."""
    file = f"{name}{Path(sample.medium.path or '').suffix}"
    (folder / file).write_bytes(store.read_media(sample.medium))
    return file


class Simulated:
    """Simulated people around one taste, the sum of a scorer's numbers, with noise and tastes of their own."""

    def __init__(self, scorer: Scorer, temperature: float, seed: int) -> None:
        self._scorer, self._temperature, self._seed = scorer, temperature, seed

    def __call__(self, store: Store, batch: str) -> None:
        lacking = missing(store, batch)
        if not lacking:
            return
        scores = _scores(self._scorer, *_looked_at(store, (comparison for comparison, _ in lacking)))
        left, right = ({name: values[side::2] for name, values in scores.items()} for side in (0, 1))
        people = annotators.panel(
            max(PEOPLE, max(comparison.wanted for comparison, _ in lacking)),
            dict.fromkeys(scores, 1.0),
            seed=self._seed,
            temperature=self._temperature,
        )
        # Of what is shown, so that the same run on the same pictures gets the same votes.
        names, at = ["|".join(comparison.samples) for comparison, _ in lacking], now()
        most = len(people.annotators)
        answers, seats = people.votes(left, right, names, most), people.seats(names)
        asked = question(store)
        store.add_votes(
            _vote(c, f"{c.id}#{seat}", str(answer), f"simulated person {seat}", at, asked)
            for (c, _), given, sat in zip(lacking, answers, seats, strict=True)
            for answer, seat in list(zip(given, sat, strict=True))[: c.wanted]
        )


class Judged:
    """Scorers vote as one, for the sample whose scores add up to more; as much is a tie."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def __call__(self, store: Store, batch: str) -> None:
        """Raises AskingError for a sample that the scorers cannot judge."""
        asked = [comparison for comparison, _ in missing(store, batch)]
        if not asked:
            return
        samples, media = _looked_at(store, asked)
        once = {sample.id: i for i, sample in enumerate(samples)}
        rows = list(once.values())
        scores = _scores(self._scorer, [samples[i] for i in rows], [media[i] for i in rows])
        total = dict(zip(once, np.sum(list(scores.values()), axis=0), strict=True))
        votes, at, dimension = [], now(), question(store)
        for comparison in asked:
            a, b = (total[name] for name in comparison.samples)
            if not np.isfinite(a - b):
                raise AskingError(f"the scorers know no score of a sample of {comparison.prompt!r}")
            choice = "tie" if a == b else "a" if a > b else "b"
            votes.append(_vote(comparison, f"{comparison.id}#scorers", choice, "scorers", at, dimension))
        store.add_votes(votes)


def _vote(comparison: Comparison, name: str, choice: str, source: str, at: str, dimension: str) -> Vote:
    a, b = comparison.samples
    return Vote(name, a, b, cast(Choice, choice), source, at, dimension, comparison=comparison.id, left=a)


def _scores(scorer: Scorer, samples: Sequence[Sample], media: Sequence[Media]) -> Mapping[str, np.ndarray]:
    prompts = [sample.prompt for sample in samples]
    return {name: np.asarray(values, float) for name, values in scorer(prompts, media).items()}


def win_shares(store: Store, batch: str, ids: Sequence[str]) -> np.ndarray:
    """[n], each sample's share of the judgements it was in, a tie half; NaN where nobody judged it."""
    won: dict[str, float] = {}
    shown: dict[str, int] = {}
    for vote, share in votes_of(store, batch):
        for name, part in ((vote.a, share), (vote.b, 1 - share)):
            won[name], shown[name] = won.get(name, 0.0) + part, shown.get(name, 0) + 1
    return np.array([won[name] / shown[name] if name in shown else np.nan for name in ids])
