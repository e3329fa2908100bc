"""The whole loop on the built-in picture world: sample, ask people, align, judge, report.

    prompts -> pictures -> votes of simulated people -> preference data -> alignment -> judged improvement

The same functions serve a model and people of your own; what is special here is only that the people are simulated
(`palate.worlds.shapes.annotators`), so that an exact oracle can say whether they got what they wanted.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel

from palate import assembly, config, judging, plugins, randomness, sampling, views
from palate.config import (
    ConfigError,
    EvaluationSettings,
    LoraSettings,
    ModelSettings,
    RolloutSettings,
    TrainingSettings,
)
from palate.datasets import parquet
from palate.evaluation import report
from palate.models.contracts import Media
from palate.models.diffusion import DiffusionPolicy
from palate.records import Medium, Preference, Sample, Score, Vote, now
from palate.training import adapters, durable
from palate.training.logs import Progress
from palate.training.offline import Offline
from palate.training.online import Online
from palate.training.sources import PreferenceRow
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
    prompts: int = 640  # offline: prompts whose pictures people compare
    k: int = 4  # pictures of each prompt
    votes: int = 3  # people asked about each pair
    lora: LoraSettings | None = _LORA
    training: TrainingSettings = field(default_factory=TrainingSettings)
    judged: int = 320  # unseen prompts, one pair of pictures each
    watched: int = 32  # other unseen prompts, whose reward is the curve in the report
    rollout: Mapping[str, Any] = field(default_factory=dict)  # online: settings of `palate.config.RolloutSettings`


_OFFLINE = TrainingSettings(
    max_steps=400,
    batch_size=8,
    learning_rate=4e-4,
    warmup_steps=40,
    lr_schedule="linear",
    weight_decay=0.0,
    evaluate_every=40,
    early_stopping=4,
    checkpoint_every=100,
)
_GENTLE = _OFFLINE.model_copy(update={"learning_rate": 2e-4})
_ROUNDS = {"prompts_per_round": 16, "k": 4, "batch_size": 32}  # four optimiser steps each
_ONLINE = TrainingSettings(
    max_steps=128, batch_size=32, micro_batch_size=8, learning_rate=1e-3, weight_decay=0.0, checkpoint_every=16
)
_ATTENTION = LoraSettings(rank=16)

PLANS: dict[str, Plan] = {
    "diffusion_dpo": Plan({"beta_dpo": 1500.0, "prompt_dropout": 0.1}, training=_OFFLINE),
    "sft": Plan(training=_GENTLE),
    "rwr": Plan({"temperature": 0.3}, training=_GENTLE),
    "d3po": Plan({"shared_noise": False, "clip": 1e-3}, lora=_ATTENTION, training=_ONLINE, rollout=_ROUNDS),
    "ddpo": Plan(
        {"min_count": 4, "clip_range": 1e-3},
        lora=_ATTENTION,
        training=_ONLINE.model_copy(update={"batch_size": 128, "micro_batch_size": 32, "learning_rate": 3e-3}),
        rollout=_ROUNDS,
    ),
}
METHOD = "diffusion_dpo"


def run(method: str = METHOD, out: str | Path = "demo", seed: int = 0, plan: Plan | None = None) -> dict[str, Any]:
    """Runs the loop and returns what result.json holds. A finished folder is left as it is, an unfinished goes on.

    Raises ConfigError for a folder that holds another demo, StorageError for one that a live process is using.
    """
    if method not in PLANS:
        raise ConfigError(f"the demo knows {', '.join(PLANS)}, not {method!r}")
    plan, out = plan or PLANS[method], Path(out)
    every = plan.training.evaluate_every or max(1, plan.training.max_steps // 4)
    plan = replace(plan, training=plan.training.model_copy(update={"seed": seed, "evaluate_every": every}))
    algorithm = plugins.find("algorithms", method)
    options = config.section(plan.options, algorithm.Config, "algorithm", "the demo")
    settings = {"model": {"name": WORLD}, "method": method, "seed": seed, "plan": resolved(plan, options)}
    with durable.locked(out):
        if (found := _finished(out, settings)) is not None:
            return found
        with metered(out) as meter:
            return _run(out, plan, settings, algorithm, options, meter)


def _run(out: Path, plan: Plan, settings: dict[str, Any], algorithm: Any, options: Any, meter: Meter) -> dict[str, Any]:
    """`run` in a folder that is this demo's alone."""
    seed = settings["seed"]
    policy = assembly.load_policy(ModelSettings(name=WORLD, device="cpu", lora=plan.lora), seed)
    sampler = assembly.settings_of(WORLD, policy)

    def preferences() -> list[PreferenceRow]:
        folder = out / "preferences"
        if not (folder / "manifest.json").is_file():
            parquet.write(folder, ask(policy, annotators.panel(5, TASTE, seed=seed), plan, seed, sampler))
        meter.keep()
        return assembly.encode(policy, assembly.read_preferences(folder, 0.0))

    source, reference = source_for(policy, algorithm, options, plan.training, plan, seed, preferences)
    look = watch(policy, out, plan, seed, lambda said: source.note(said))

    def evaluate(step: int) -> Mapping[str, float]:
        meter.keep()
        return look(step)

    say(f"aligning with {settings['method']}")
    result = assembly.fit(
        policy, algorithm, options, source, plan.training, out, reference=reference, evaluate=evaluate, locked=True
    )
    return conclude(policy, out, plan, settings, result, meter, algorithm, source.prompts)


def source_for(
    policy: DiffusionPolicy,
    algorithm: Any,
    options: Any,
    training: TrainingSettings,
    plan: Plan,
    seed: int,
    preferences: Callable[[], Sequence[PreferenceRow]],
) -> tuple[Offline | Online, adapters.Reference | None]:
    """What the method learns from: stored preferences, or rounds of its own samples, voted on or truly scored."""
    reference = assembly.reference_for(policy, algorithm, options)
    if algorithm.NEEDS.source == "offline":
        return assembly.offline_source(policy, list(preferences()), options, training, held_out=0.1), reference
    people = annotators.panel(5, TASTE, seed=seed)
    scorer = _true_reward if told_the_truth(algorithm) else partial(_win_share, people, plan.votes)
    rollout, sampler = _rollout(plan), assembly.settings_of(WORLD, policy)
    source = assembly.online_source(
        policy, algorithm, options, shapes.prompts("train"), scorer, rollout, training, sampler, reference
    )
    return source, reference


def _rollout(plan: Plan) -> RolloutSettings:
    return RolloutSettings(prompts=f"{WORLD}:train", scorers={WORLD: 1.0}, **plan.rollout)


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


def eval_prompts(plan: Plan, seed: int) -> tuple[list[str], list[str]]:
    """Unseen prompts: those watched while training, and others that are judged on in the end."""
    found = some(shapes.prompts("eval"), plan.judged + plan.watched, seed)
    return found[plan.judged :], found[: plan.judged]


def watch(
    policy: DiffusionPolicy, out: Path, plan: Plan, seed: int, note: Callable[[str], None]
) -> Callable[[int], Mapping[str, float]]:
    """The reward on the way, by the known truth: for the report's curve and grids; nothing is chosen by it."""
    watched, _ = eval_prompts(plan, seed)
    wanted = EvaluationSettings(prompts=watched, scorers={WORLD: 1.0}, n=1, seed=seed + 2_000_003, batch_size=32)
    look = judging.watch(policy, WORLD, wanted, out, note=note, weights=TASTE)
    every, steps = plan.training.evaluate_every, plan.training.max_steps
    assert every
    return lambda step: look(step) if due(step, every, steps) else {}


def due(step: int, every: int, steps: int) -> bool:
    """Whether to look at a step, a multiple of `every` or the last of `steps`: four or five times a run."""
    stride = -(-(steps // every) // 4) or 1
    return step == steps or step // every % stride == 0


def conclude(
    policy: DiffusionPolicy,
    out: Path,
    plan: Plan,
    settings: dict[str, Any],
    result: Any,
    meter: Meter,
    algorithm: Any,
    trained_on: Sequence[str],
) -> dict[str, Any]:
    """Base and tuned on prompts and seeds not trained on; result.json and report.html."""
    seed = settings["seed"]
    _, prompts = eval_prompts(plan, seed)
    say(f"judging on {len(prompts)} prompts the model was not trained on")
    wanted = EvaluationSettings(prompts=prompts, scorers={WORLD: 1.0}, n=1, seed=seed + 1_000_003, batch_size=32)
    judged = judging.judge(policy, WORLD, wanted, out, trained_on, weights=TASTE, by="the known truth", show=24)
    facts = {
        "title": f"{settings['method']} on {WORLD}",
        "method": settings["method"],
        "seed": seed,
        "n_pairs": 0 if told_the_truth(algorithm) else _pairs_asked_about(out, settings["plan"]),
        **judged,
        "seconds": round(meter.seconds, 1),
        "peak_memory_gb": round(meter.peak_memory_gb, 2),
        "steps": result.step,
        "weights": f"{result.exported}, step {result.exported_step}",
        "data": {
            "feedback": "the known truth: alignment, wholeness and safety added up"
            if told_the_truth(algorithm)
            else "votes of five simulated people for alignment, wholeness and safety, with noise"
        },
        "warnings": list(result.warnings),
        "seeds": {"training": seed, "judging": wanted.seed},
        "versions": report.versions(),
        "start_loss": algorithm.NEEDS.start_loss,
        "settings": settings,
    }
    judging.publish(out, facts)
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


# --- the demo's folder ------------------------------------------------------------------------------------------------


class Meter:
    """Seconds and memory of all invocations on a folder, kept in its meter.json; what a kill cut off is missing."""

    def __init__(self, folder: Path) -> None:
        self._path, self._began = folder / "meter.json", time.perf_counter()
        held = json.loads(self._path.read_text(encoding="utf-8")) if self._path.is_file() else {}
        self._seconds, self._peak = held.get("seconds", 0.0), held.get("peak_memory_gb", 0.0)

    @property
    def seconds(self) -> float:
        """So far, in all."""
        return float(self._seconds + time.perf_counter() - self._began)

    @property
    def peak_memory_gb(self) -> float:
        """The most main memory that a process held, in GB of 10^9 bytes."""
        return float(max(self._peak, peak_memory_gb()))

    def keep(self) -> None:
        judging.write_json(self._path, {"seconds": self.seconds, "peak_memory_gb": self.peak_memory_gb})


@contextlib.contextmanager
def metered(folder: Path) -> Iterator[Meter]:
    """A meter that is kept however the block ends."""
    meter = Meter(folder)
    try:
        yield meter
    finally:
        meter.keep()


def peak_memory_gb() -> float:
    """The most main memory that this process has held, in GB of 10^9 bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def resolved(plan: Plan, options: BaseModel) -> dict[str, Any]:
    """Every setting of a plan, defaults and all, as config.yaml holds it."""
    return {
        "options": options.model_dump(mode="json"),
        "prompts": plan.prompts,
        "k": plan.k,
        "votes": plan.votes,
        "judged": plan.judged,
        "watched": plan.watched,
        "lora": plan.lora.model_dump(mode="json") if plan.lora else None,
        "training": plan.training.model_dump(mode="json"),
        "rollout": _rollout(plan).model_dump(mode="json") if plan.rollout else {},
    }


def _finished(out: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The finished result of this folder, if there is one. Raises ConfigError if the folder holds another demo."""
    held = out / "config.yaml"
    if held.is_file():
        changes = config.difference(yaml.safe_load(held.read_text(encoding="utf-8")) or {}, settings)
        if changes:
            more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
            raise ConfigError(
                f"{out} holds a demo with other settings: {changes[0]}{more}; give another --out, or remove it"
            )
        result = out / "result.json"
        if result.is_file():
            judging.mend(out)
            say(f"{out} is finished; look at {out / 'report.html'}")
            return json.loads(result.read_text(encoding="utf-8"))
        return None
    aside = held.with_name("config.yaml.partial")
    aside.write_text(yaml.safe_dump(dict(settings), sort_keys=False), encoding="utf-8")
    aside.replace(held)
    return None


def say(message: str) -> None:
    print(message, flush=True)
