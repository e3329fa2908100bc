"""Commands on a project folder: candidates and scores into it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from palate import kinds
from palate.config import ConfigError
from palate.doors import drawing, judging, lookup, matching, shown
from palate.doors.hands import KNOWN
from palate.media import MediaError
from palate.project import ProjectSettings
from palate.records import Comparison, Medium, Sample, Score, now
from palate.store import Store
from palate.training.logs import Progress


def sample(
    model: str,
    prompts: str | Path,
    *,
    folder: Path,
    k: int,
    seed: int,
    pairs: int | None = None,
    batch: str = "",
    batch_size: int = 8,
    image: str | Path | None = None,
    strength: float | None = None,
    **asked: Any,
) -> None:
    """k candidates of each prompt as samples of a project, made if need be, and comparisons of them for its raters.

    Again: only what is missing. pairs: comparisons of each prompt, those first in an order of their own; None for all.
    In a project of rankings each shows as many candidates as its settings say. The rest as of `drawing.sample`.
    """
    order = drawing.ordered(model, prompts, seed=seed, image=image, strength=strength, **asked)
    with Store.open(folder, create=True) as store:
        ids = [[_sample_id(order, row, j) for j in range(k)] for row in range(len(order.rows))]
        known = {made.id: made.medium for made in store.samples(source=model)}
        wanted = [(i, j) for i, names in enumerate(ids) for j, name in enumerate(names) if name not in known]
        with closing(order.draw(wanted, batch_size)) as drawn:
            for part in _parts(drawn, batch_size):
                made = [
                    Sample(ids[i][j], order.rows[i][0], kinds.written(medium), model, now(), seed)
                    for i, j, medium in part
                ]
                store.add_samples(made, batch=batch)
        media = {made.id: made.medium for made in store.samples(source=model)}
        asked_of = [
            comparison
            for names, (prompt, _) in zip(ids, order.rows, strict=True)
            for comparison in _comparisons(prompt, names, media, store.settings, pairs, batch)
        ]
        have = {(known.batch, frozenset(known.samples)) for known in store.comparisons()}
        new = store.add_comparisons(made for made in asked_of if (made.batch, frozenset(made.samples)) not in have)
    total = sum(map(len, ids))
    print(f"{total} candidates in {folder} ({len(wanted)} new), {len(asked_of)} comparisons ({new} new)")
    print(f"palate label --project {folder} shows them to people")


def _parts(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    part: list[Any] = []
    for item in items:
        part.append(item)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def _sample_id(order: drawing.Order, row: int, candidate: int) -> str:
    """By what a candidate is made of, so that it is known again and other settings make another."""
    prompt, path = order.rows[row]
    made_of = {"model": order.model, "seed": order.seed, "prompt": prompt, "candidate": candidate, **order.asked}
    made_of |= {"call": dict(order.call)} if order.call else {}
    if path is not None and order.originals is not None:
        image = hashlib.sha256(path.read_bytes()).hexdigest()
        made_of |= {"image": image, "strength": order.originals.strength}
    return _digest(made_of)


def _digest(facts: Any) -> str:
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=12).hexdigest()


def _comparisons(
    prompt: str,
    names: Sequence[str],
    media: Mapping[str, Medium],
    settings: ProjectSettings,
    pairs: int | None,
    batch: str,
) -> Iterator[Comparison]:
    """What of a prompt's candidates is shown together; of the same picture twice once."""
    different = list({media[name]: name for name in names}.values())
    show = settings.show if settings.kind == "ranking" else None
    wanted = settings.votes_per_comparison
    return shown.comparisons(prompt, different, batch=batch, wanted=wanted, show=show, most=pairs)


def score(folder: Path, scorers: Sequence[str], batch_size: int = 8) -> None:
    """Every sample of a project scored by each scorer, stored as it goes. Again: only what is missing.

    A scorer that compares the candidates of a prompt (`groupwise`) has all of them in one call, and all of them again
    once there is another: the latest scores count. A candidate alone waits for another.

    Raises ConfigError for a scorer that judges none of these kinds of media, that gives something else than a number a
    sample, or a sample it cannot look at.
    """
    with Store.open(folder) as store:
        for name in scorers:
            _score(store, name, batch_size)


def _score(store: Store, name: str, batch_size: int) -> None:
    done = {known.sample: known.time for known in store.scores(source=name)}  # the latest of each
    samples = list(store.samples())
    judged = _judged(store.folder, name, samples) if any(made.id not in done for made in samples) else []
    wanted = [made for made in judged if made.id not in done]
    judge: Any = lookup.find_scorer(name) if wanted else None
    calls = _parts(range(len(wanted)), batch_size)
    if getattr(judge, "groupwise", False):
        wanted = _compared(name, judged, done)
        calls = judging.whole_prompts([made.prompt for made in wanted], batch_size)
    before = judging.tally_of(judge)
    with closing(Progress(len(wanted), 0, what="sample")) as bar:
        for rows in calls:
            store.add_scores(_scored(store, name, judge, [wanted[row] for row in rows]))
            bar.advance(len(rows))
    new = sum(made.id not in done for made in wanted)
    again = f", {len(wanted) - new} compared again" if len(wanted) > new else ""
    print(f"{name}: {len(done) + new} samples in {store.folder} scored ({new} new{again})")
    judging.tell_tally(judging.tally_since(judge, before))


def _compared(name: str, samples: Sequence[Sample], done: Mapping[str, str]) -> list[Sample]:
    """The candidates of prompts that have two at least, and whose latest scores are not all of one call.

    done: the time of each sample's, one for all of a call. Those alone are told of; known pairs are no candidates.
    """
    prompts: dict[str, list[Sample]] = {}
    for made in samples:
        if made.source != KNOWN:
            prompts.setdefault(made.prompt, []).append(made)
    if alone := sum(len(candidates) == 1 for candidates in prompts.values()):
        said = "1 prompt with one candidate alone is" if alone == 1 else f"{alone} prompts with one candidate alone are"
        print(f"{name} compares the candidates of a prompt: {said} left out")
    several = (candidates for candidates in prompts.values() if len(candidates) > 1)
    return [
        made
        for candidates in several
        if not all(one.id in done for one in candidates) or len({done[one.id] for one in candidates}) > 1
        for made in candidates
    ]


def _judged(folder: Path, name: str, samples: Sequence[Sample]) -> list[Sample]:
    """The samples of the kinds that a scorer judges; all, if it does not say. Raises ConfigError if it judges none."""
    judged = matching.judged_by(name) if samples else ()
    kept = [made for made in samples if not judged or kinds.kind_of_type(made.medium.type) in judged]
    if samples and not kept:
        matching.check([name], kinds.kind_of_type(samples[0].medium.type), f"{folder} holds")
    if len(kept) < len(samples):
        print(f"{name} judges {' and '.join(judged)}: {len(samples) - len(kept)} other samples are left out")
    return kept


def _scored(store: Store, name: str, judge: Any, part: Sequence[Sample]) -> Iterator[Score]:
    media = []
    for made in part:
        try:
            media.append(kinds.read(Medium(made.medium.type, store.read_media(made.medium))))
        except MediaError as error:
            raise ConfigError(f"{name} cannot look at sample {made.id} of {store.folder}: {error}") from None
    at = now()
    for dimension, values in judge([made.prompt for made in part], media).items():
        given = np.asarray(values, np.float64)
        if given.shape != (len(part),):
            raise ConfigError(f"{name} gave {given.shape} scores of {dimension} for {len(part)} samples: one each")
        for made, value in zip(part, given.tolist(), strict=True):
            yield Score(made.id, dimension, value, name, at)
