"""The whole loop on the built-in picture world: sample, ask people, align, judge, report.

    prompts -> pictures -> votes of simulated people -> preference data -> alignment -> judged improvement

The same functions serve a model and people of your own; what is special here is only that the people are simulated
(`palate.worlds.shapes.annotators`), so that an exact oracle can say whether they got what they wanted.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from palate import assembly, config, plugins, randomness, sampling, views
from palate import run as runs
from palate.config import ConfigError, LoraSettings, ModelSettings, RolloutSettings, TrainingSettings
from palate.datasets import parquet
from palate.evaluation import compare as comparing
from palate.evaluation import grids, report
from palate.models.contracts import Media
from palate.models.diffusion import DiffusionPolicy
from palate.records import Medium, Preference, Sample, Score, Vote, now
from palate.training import adapters
from palate.training.logs import Progress
from palate.training.sources import PreferenceRow, Source
from palate.worlds import shapes
from palate.worlds.shapes import annotators

WORLD = "world:shapes"
TASTE = {"alignment": 1.0, "wholeness": 1.0, "safety": 1.0}  # what the simulated people vote for


_LORA = LoraSettings(
    rank=16,
    targets=[
        *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out"),
        *("ff.net.0.proj", "ff.net.2", "conv1", "conv2", "conv_shortcut"),
    ],
)


@dataclass(frozen=True)
class Plan:
    """One method's settings for a few minutes on two cores, found by the sweep that docs/demo.md writes down."""

    options: Mapping[str, Any] = field(default_factory=dict)
    prompts: int = 384  # offline: prompts whose pictures people compare
    k: int = 4  # pictures of each prompt
    votes: int = 3  # people asked about each pair
    lora: LoraSettings | None = _LORA
    training: TrainingSettings = field(default_factory=TrainingSettings)
    judged: int = 320  # unseen prompts, one pair of pictures each
    rollout: Mapping[str, Any] = field(default_factory=dict)  # online: settings of `palate.config.RolloutSettings`


_OFFLINE = TrainingSettings(
    max_steps=200,
    batch_size=8,
    learning_rate=4e-4,
    warmup_steps=40,
    lr_schedule="linear",
    weight_decay=0.0,
    evaluate_every=40,
    early_stopping=3,
    checkpoint_every=100,
)
_ONLINE = TrainingSettings(
    max_steps=64, batch_size=40, micro_batch_size=8, learning_rate=5e-4, weight_decay=0.0, checkpoint_every=8
)
_ROUNDS = {"prompts_per_round": 16, "k": 4, "batch_size": 32}

PLANS: dict[str, Plan] = {
    "diffusion_dpo": Plan({"beta_dpo": 1000.0, "prompt_dropout": 0.1}, training=_OFFLINE),
    "sft": Plan(training=_OFFLINE),
    "rwr": Plan({"temperature": 0.3}, training=_OFFLINE),
    "d3po": Plan({"shared_noise": False}, training=_ONLINE, rollout=_ROUNDS),
    "ddpo": Plan(
        {"min_count": 4, "clip_range": 1e-3},
        training=_ONLINE.model_copy(update={"batch_size": 160, "micro_batch_size": 32}),
        rollout=_ROUNDS,
    ),
}
METHOD = "diffusion_dpo"


def run(method: str = METHOD, out: str | Path = "demo", seed: int = 0, plan: Plan | None = None) -> dict[str, Any]:
    """Runs the loop and returns what result.json holds. A finished folder is left as it is, an unfinished goes on."""
    if method not in PLANS:
        raise ConfigError(f"the demo knows {', '.join(PLANS)}, not {method!r}")
    began = time.perf_counter()
    plan, out = plan or PLANS[method], Path(out)
    settings = {"model": {"name": WORLD}, "method": method, "seed": seed, "plan": _plain(plan)}
    if (found := _finished(out, settings)) is not None:
        return found
    algorithm = plugins.find("algorithms", method)
    options = config.section(plan.options, algorithm.Config, "algorithm", "the demo")
    training = plan.training.model_copy(update={"seed": seed})
    policy = assembly.load_policy(ModelSettings(name=WORLD, device="cpu", lora=plan.lora), seed)
    sampler = assembly.settings_of(WORLD, policy)

    def preferences() -> list[PreferenceRow]:
        folder = out / "preferences"
        if not (folder / "manifest.json").is_file():
            parquet.write(folder, ask(policy, annotators.panel(5, TASTE, seed=seed), plan, seed, sampler))
        return assembly.encode(policy, assembly.read_preferences(folder, 0.0))

    source, reference = source_for(policy, algorithm, options, training, plan, seed, preferences)
    say(f"aligning with {method}")
    result = assembly.fit(policy, algorithm, options, source, training, out, reference=reference)
    return conclude(policy, out, settings, result, sampler, began, algorithm)


def source_for(
    policy: DiffusionPolicy,
    algorithm: Any,
    options: Any,
    training: TrainingSettings,
    plan: Plan,
    seed: int,
    preferences: Callable[[], Sequence[PreferenceRow]],
) -> tuple[Source, adapters.Reference | None]:
    """What the method learns from: stored preferences, or rounds of its own samples, voted on or truly scored."""
    reference = assembly.reference_for(policy, algorithm, options)
    if algorithm.NEEDS.source == "offline":
        return assembly.offline_source(policy, list(preferences()), options, training, held_out=0.1), reference
    people = annotators.panel(5, TASTE, seed=seed)
    scorer = _true_reward if told_the_truth(algorithm) else partial(_win_share, people, plan.votes)
    rollout = RolloutSettings(prompts=f"{WORLD}:train", scorers={WORLD: 1.0}, **plan.rollout)
    sampler = assembly.settings_of(WORLD, policy)
    source = assembly.online_source(
        policy, algorithm, options, shapes.prompts("train"), scorer, rollout, training, sampler, reference
    )
    return source, reference


def told_the_truth(algorithm: Any) -> bool:
    """Whether a method needs the reward itself, one sample at a time, so that comparisons would not do."""
    return bool(algorithm.NEEDS.source == "online" and algorithm.NEEDS.k == 1)


# --- asking people ----------------------------------------------------------------------------------------------------


def ask(
    policy: DiffusionPolicy, people: annotators.Panel, plan: Plan, seed: int, sampler: Mapping[str, Any]
) -> list[Preference]:
    """k pictures of each prompt, every pair of them shown to some of the people: preference data from their votes."""
    prompts = some(shapes.prompts("train"), plan.prompts, seed)
    rows = [prompt for prompt in prompts for _ in range(plan.k)]
    ids = [f"{prompt}/{number}" for prompt in prompts for number in range(plan.k)]
    say(f"sampling {len(rows)} pictures of {len(prompts)} prompts")
    media = _sampled(policy, rows, ids, seed, sampler)
    scores = shapes.scorer()(rows, media)
    time_of = now()
    samples = [
        Sample(name, prompt, Medium("image/png", _png(picture)), WORLD, time_of, seed)
        for name, prompt, picture in zip(ids, rows, media, strict=True)
    ]
    facts = [Score(name, d, float(scores[d][i]), "oracle", time_of) for i, name in enumerate(ids) for d in TASTE]
    votes = _votes(people, ids, rows, scores, plan.votes, time_of)
    say(f"{len(votes)} votes of {len(people.annotators)} people on {len(votes) // plan.votes} pairs")
    return list(views.preferences(samples, votes, facts, by="votes", dimensions=list(TASTE)))


def _votes(
    people: annotators.Panel, ids: Sequence[str], prompts: Sequence[str], scores: Mapping[str, Any], k: int, at: str
) -> list[Vote]:
    """Votes on all pairs of pictures of one prompt, sides at random."""
    left, right = _pairs(ids, prompts)
    names = [f"{ids[a]}|{ids[b]}" for a, b in zip(left, right, strict=True)]
    answers = people.votes(_rows(scores, left), _rows(scores, right), names, k)
    seats = people.seats(names)[:, :k]
    return [
        Vote(f"{name}#{seat}", ids[a], ids[b], str(answer), f"person {seat}", at)  # type: ignore[arg-type]
        for name, a, b, given, sat in zip(names, left, right, answers, seats, strict=True)
        for answer, seat in zip(given, sat, strict=True)
    ]


def _pairs(ids: Sequence[str], prompts: Sequence[str]) -> tuple[list[int], list[int]]:
    """All pairs of rows of one prompt, each the way round that its key says."""
    groups: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(row)
    found = [pair for rows in groups.values() for pair in combinations(rows, 2)]
    sided = [(a, b) if randomness.key("side", ids[a], ids[b]) % 2 else (b, a) for a, b in found]
    return [a for a, _ in sided], [b for _, b in sided]


def _rows(scores: Mapping[str, Any], rows: Sequence[int]) -> dict[str, np.ndarray]:
    return {name: np.asarray(values)[list(rows)] for name, values in scores.items()}


def _win_share(
    people: annotators.Panel, k: int, prompts: Sequence[str], media: Sequence[Media]
) -> dict[str, np.ndarray]:
    """Each picture's share of the votes it was in: all that people's comparisons say, and no number of the truth."""
    scores = shapes.scorer()(prompts, media)
    ids = [f"{prompt}/{randomness.key(picture.tobytes())}" for prompt, picture in zip(prompts, media, strict=True)]
    left, right = _pairs(ids, prompts)
    names = [f"{ids[a]}|{ids[b]}" for a, b in zip(left, right, strict=True)]
    share, _ = annotators.preference(people.votes(_rows(scores, left), _rows(scores, right), names, k))
    won, shown = np.zeros(len(media)), np.zeros(len(media))
    for a, b, p in zip(left, right, share, strict=True):
        won[a], won[b] = won[a] + p, won[b] + 1 - p
        shown[a], shown[b] = shown[a] + 1, shown[b] + 1
    return {"votes": won / np.maximum(shown, 1)}


def _true_reward(prompts: Sequence[str], media: Sequence[Media]) -> dict[str, np.ndarray]:
    scores = shapes.scorer()(prompts, media)
    return {name: scores[name] for name in TASTE}


# --- judging ----------------------------------------------------------------------------------------------------------


def conclude(
    policy: DiffusionPolicy,
    out: Path,
    settings: dict[str, Any],
    result: Any,
    sampler: Mapping[str, Any],
    began: float,
    algorithm: Any,
) -> dict[str, Any]:
    """Base and tuned on prompts and seeds not trained on; result.json and report.html."""
    seed = settings["seed"]
    prompts = some(shapes.prompts("eval"), settings["plan"]["judged"], seed)
    say(f"judging on {len(prompts)} prompts the model was not trained on")
    run_arm = partial(comparing.run_arm, prompts=prompts, scorer=shapes.scorer(), n=1, seed=seed + 1_000_003)
    bar = Progress(2 * len(prompts), 0, what="picture")
    tuned = run_arm(policy, settings=sampler, progress=bar.advance)
    with runs.base_of(policy, WORLD) as untouched:
        base = run_arm(untouched, settings=sampler, progress=bar.advance)
    bar.close()
    judged = runs.summary(base, tuned, TASTE, judge="the known truth")
    show = range(min(24, len(base.media)))  # as they come: a page that chose its pictures could show anything
    facts = {
        "title": f"{settings['method']} on {WORLD}",
        "method": settings["method"],
        "seed": seed,
        "n_pairs": 0 if told_the_truth(algorithm) else _pairs_asked_about(out, settings["plan"]),
        **judged,
        "seconds": round(time.perf_counter() - began, 1),
        "steps": result.step,
        "weights": f"{result.exported}, step {result.exported_step}",
        "data": {
            "feedback": "the known truth: alignment, wholeness and safety added up"
            if told_the_truth(algorithm)
            else "votes of five simulated people for alignment, wholeness and safety, with noise"
        },
        "seeds": {"training": seed, "judging": seed + 1_000_003},
        "versions": report.versions(),
        "start_loss": algorithm.NEEDS.start_loss,
        "settings": settings,
        "pairs": grids.write_pairs(
            out / "samples",
            [base.prompts[i] for i in show],
            [base.media[i] for i in show],
            [tuned.media[i] for i in show],
        ),
    }
    runs.write_json(out / "result.json", facts)
    report.write(report.from_run(out), out / "report.html")
    low, high = facts["win_rate_ci95"]
    say(
        f"the oracle prefers the tuned model in {facts['win_rate']:.1%} of {facts['pairs_judged']} pairs "
        f"(95% interval {low:.1%} to {high:.1%}, {facts['ties']:.0%} ties); {facts['seconds']:.0f} s in all"
    )
    say(f"look at {out / 'report.html'}")
    return facts


def _pairs_asked_about(out: Path, plan: Mapping[str, Any]) -> int:
    """Pairs of pictures that people were shown: all of the stored preferences, or round by round."""
    if (out / "preferences").is_dir():
        rows = parquet.read(out / "preferences")
        return sum(int((~np.isnan(np.asarray(row.prefer))).sum()) // 2 for row in rows)
    logged = (json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    rounds = 1 + max((int(row["round"]) for row in logged if "round" in row), default=-1)
    k = plan["rollout"]["k"]
    return rounds * int(plan["rollout"]["prompts_per_round"]) * k * (k - 1) // 2


def _sampled(
    policy: DiffusionPolicy, prompts: Sequence[str], ids: Sequence[str], seed: int, sampler: Mapping[str, Any]
) -> list[Media]:
    bar = Progress(len(prompts), 0, what="picture")
    media = sampling.sample(policy, prompts, ids, seed=seed, progress=bar.advance, **sampler)
    bar.close()
    return media


def some(prompts: Sequence[str], n: int, seed: int) -> list[str]:
    """n of the prompts by their keyed order: the same whatever else is drawn."""
    return sorted(prompts, key=lambda prompt: randomness.key(seed, "prompt", prompt))[:n]


def _png(picture: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _plain(plan: Plan) -> dict[str, Any]:
    return {
        "options": dict(plan.options),
        "prompts": plan.prompts,
        "k": plan.k,
        "votes": plan.votes,
        "judged": plan.judged,
        "lora": plan.lora.model_dump() if plan.lora else None,
        "training": plan.training.model_dump(),
        "rollout": dict(plan.rollout),
    }


def _finished(out: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The finished result of this folder, if there is one. Raises ConfigError if the folder holds another demo."""
    held = out / "config.yaml"
    if held.is_file():
        if yaml.safe_load(held.read_text(encoding="utf-8")) != settings:
            raise ConfigError(f"{out} holds a demo with other settings; give another --out, or remove it")
        result = out / "result.json"
        if result.is_file():
            say(f"{out} is finished; look at {out / 'report.html'}")
            return json.loads(result.read_text(encoding="utf-8"))
        return None
    out.mkdir(parents=True, exist_ok=True)
    aside = held.with_name("config.yaml.partial")
    aside.write_text(yaml.safe_dump(dict(settings), sort_keys=False), encoding="utf-8")
    aside.replace(held)
    return None


def say(message: str) -> None:
    print(message, flush=True)
