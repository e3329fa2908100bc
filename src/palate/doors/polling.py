"""`palate compare --people`: models' samples into a project as pairs to be judged; when votes are in, the verdict."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import chain, combinations
from pathlib import Path
from typing import Any

from palate import agreement, durable, kinds, sampling, views
from palate.config import ConfigError
from palate.doors import asking, awaited, comparing, drawing, judging, lookup, matching
from palate.evaluation import people, verdict
from palate.prompts import Prompt
from palate.records import Comparison, Sample, Vote, now
from palate.store import Store
from palate.training.logs import Progress

WANTED = 5  # raters of a pair, the majority of whom decides, as in Diffusion-DPO's study


def compare(
    models: Sequence[str],
    *,
    prompts: str | Path,
    project: Path,
    n: int,
    out: Path,
    seed: int,
    wanted: int = WANTED,
    call: Mapping[str, Any] | None = None,
    batch_size: int = 8,
    **asked: Any,
) -> Path:
    """Each model against each other, by people in the studio. Again: draws what is missing, and counts the votes.

    n: pairs of each prompt and two models, each from one seed, shown to `wanted` distinct raters. Raises ConfigError
    as `comparing.compare` does, StoreError of a project that another process writes to.
    """
    if len(models) < 2 or len(set(models)) < len(models):
        raise ConfigError(f"palate compare takes two models or more, each once; got {', '.join(models)}")
    rows = lookup.prompt_rows(prompts)
    texts, how = [row.text for row in rows], {"call": call or {}, "asked": asked}
    made_of = comparing.made_by(models, texts, n=n, seed=seed, **how) | {"people": str(project), "wanted": wanted}
    batch = "compare-" + _digest({**made_of, "people": None})
    with durable.locked(out):
        shown = _shown(models, rows, n, batch)
        filled = _filled(project, models, batch, len(shown))
        if not filled:
            matching.of_all(models)
        drawing.same_folder(out / comparing.COMPARISON, made_of, "comparisons")
        if not filled:
            with Store.open(project, create=True) as store:
                _fill(store, models, rows, n, seed, batch, batch_size, **how)
                _ask(store, shown, batch, wanted)
        with Store.open(project, write=False) as store:
            facts = _counted(store, models, rows, shown, batch, n, out)
        facts |= comparing.told_of(models, prompts, len(rows), seed, "people")
        facts["sampling"] = {name: value for name, value in asked.items() if value is not None}
        judging.publish(out, facts)
        _tell(out, project, facts)
    return out


def _digest(facts: Any) -> str:
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()


def _id(batch: str, model: int, row: int, number: int) -> str:
    """Of a sample; hashed, so that no id that a rater's page might show names a model."""
    return _digest([batch, model, row, number])


def _shown(models: Sequence[str], rows: Sequence[Prompt], n: int, batch: str) -> list[people.Shown]:
    return [
        people.Shown(i, j, (_id(batch, i, row, number), _id(batch, j, row, number)), prompt.text, prompt.category)
        for row, prompt in enumerate(rows)
        for number in range(n)
        for i, j in combinations(range(len(models)), 2)
    ]


def _filled(project: Path, models: Sequence[str], batch: str, pairs: int) -> bool:
    """Whether the project holds all pairs of this comparison: it may then be open in the studio, and is only read."""
    if not (project / "project.yaml").is_file():
        return False
    with Store.open(project, write=False) as store:
        return sum(1 for _ in store.comparisons(batch=batch)) == pairs


def _fill(
    store: Store,
    models: Sequence[str],
    rows: Sequence[Prompt],
    n: int,
    seed: int,
    batch: str,
    batch_size: int,
    call: Mapping[str, Any],
    asked: Mapping[str, Any],
) -> None:
    """Draws what the project lacks, all models from the same noise and by the first one's sampler."""
    have = {sample.id for sample in store.samples(batch=batch)}
    settings: dict[str, Any] = {}
    for number_of, model in enumerate(models):
        wanted = [(r, j) for r in range(len(rows)) for j in range(n) if _id(batch, number_of, r, j) not in have]
        if not wanted and settings:
            continue
        policy = lookup.load_arm(model, call)
        settings = settings or lookup.settings_of(model, policy, **asked)
        with closing(Progress(len(wanted), 0, what="sample")) as bar:
            for start in range(0, len(wanted), batch_size):
                part = wanted[start : start + batch_size]
                texts = [rows[r].text for r, _ in part]
                ids = [f"judging/{rows[r].text}/{j}" for r, j in part]
                media = sampling.sample(policy, texts, ids, seed=seed, batch_size=batch_size, **settings)
                store.add_samples(
                    [
                        Sample(_id(batch, number_of, r, j), text, kinds.written(made), model, now(), seed)
                        for (r, j), text, made in zip(part, texts, media, strict=True)
                    ],
                    batch=batch,
                )
                bar.advance(len(part))
        del policy  # before the next is loaded: two at once need not fit


def _ask(store: Store, shown: Sequence[people.Shown], batch: str, wanted: int) -> None:
    have = {comparison.id for comparison in store.comparisons(batch=batch)}
    made = (Comparison(_digest([batch, *p.samples]), p.prompt, p.samples, wanted, batch=batch) for p in shown)
    store.add_comparisons(comparison for comparison in made if comparison.id not in have)


def _counted(
    store: Store,
    models: Sequence[str],
    rows: Sequence[Prompt],
    shown: Sequence[people.Shown],
    batch: str,
    n: int,
    out: Path,
) -> dict[str, Any]:
    """What the answers so far say, for every question of the project; of raters, what the first question tells."""
    asked = awaited.asked_of(store, batch)
    ids = {comparison.id for comparison in asked}
    everything, rankings = list(store.votes()), list(store.rankings())
    votes = [vote for vote in chain(everything, *map(views.as_votes, rankings)) if vote.comparison in ids]
    judged: dict[str, Any] = {}
    single = []
    for dimension in dict.fromkeys(vote.dimension for vote in votes):
        name = "people" if len(store.settings.questions) < 2 else f"people: {dimension}"
        judged[name] = people.majorities(shown, votes, dimension)
        single += [{"judge": name, **of} for of in people.each_vote(shown, votes, models, dimension)]
    numbers = verdict.numbers(models, judged, {}) if judged else {"verdicts": [], "categories": []}
    alphas = {name: _plain(agreement.alpha(votes, name)) for name in store.settings.questions}
    first = awaited.question(store)
    given = _given(asked, votes)
    return {
        "models": list(models),
        "warnings": [] if judged else ["nobody has voted yet"],
        **numbers,
        "judges": [{"name": name, "role": verdict.JUDGE} for name in judged],
        "shown": _exhibits(store, models, rows, batch, out / "samples"),
        "people": {
            "votes": sum(given.values()),
            "wanted": sum(comparison.wanted for comparison in asked),
            "pairs": len(given),
            "each_vote": single,
            "alphas": alphas,
            "raters": [asdict(r) for r in agreement.raters(everything, store.comparisons(), first, rankings=rankings)],
        },
    }


def _given(asked: Sequence[Comparison], votes: Sequence[Vote]) -> dict[str, int]:
    """By comparison that has any, raters who answered, `wanted` at most: a skip, a repeat and a vote too many bring no
    pair nearer to being done, nor does one rater's answer to a second question."""
    raters: dict[str, set[str]] = {}
    for vote in votes:
        if not vote.repeat and vote.choice != "skip":
            raters.setdefault(vote.comparison, set()).add(vote.source)
    return {pair.id: min(len(raters[pair.id]), pair.wanted) for pair in asked if pair.id in raters}


def _plain(found: agreement.Alpha | None) -> dict[str, Any] | None:
    return asdict(found) if found else None


def _exhibits(
    store: Store, models: Sequence[str], rows: Sequence[Prompt], batch: str, folder: Path
) -> list[dict[str, Any]]:
    """The first prompts' media as files of the comparison's folder."""
    samples = {sample.id: sample for sample in store.samples(batch=batch)}
    folder.mkdir(parents=True, exist_ok=True)
    shown = []
    for row, prompt in enumerate(rows[: comparing.SHOWN]):
        held = [samples[_id(batch, number, row, 0)] for number in range(len(models))]
        files = [asking.laid_out(store, made, folder, f"model_{i}_{row:03d}") for i, made in enumerate(held)]
        shown.append({"prompt": prompt.text, "category": prompt.category, "files": files})
    return shown


def _tell(out: Path, project: Path, facts: Mapping[str, Any]) -> None:
    of = facts["people"]
    print(f"{of['votes']} of {of['wanted']} votes wanted, by {len(of['raters'])} raters, in {project}")
    if of["votes"] < of["wanted"]:
        print(f"palate label --project {project} shows the pairs; the same command again counts the votes")
    if facts["verdicts"]:
        comparing.tell(out)
        for one in of["each_vote"]:
            low, high = one["ci95"]
            print(
                f"each vote by itself, {one['judge']}: {one['b']} over {one['a']} {one['rate']:.1%} of {one['n']} "
                f"({low:.1%} to {high:.1%} for other prompts and raters)"
            )
        for rater in of["raters"]:
            for flag in rater["flags"]:
                print(f"rater {rater['id']}: {flag}")
