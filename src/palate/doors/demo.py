"""The whole loop on the built-in picture world: sample, ask people, align, judge, report.

    prompts -> pictures -> votes of simulated people -> preference data -> alignment -> judged improvement

The same functions serve a model and people of your own; what is special here is only that the people are simulated
(`palate.worlds.shapes.annotators`), so that an exact oracle can say whether they got what they wanted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel

from palate import config, durable, plugins, randomness
from palate.config import (
    ConfigError,
    EvaluationSettings,
    LoraSettings,
    ModelSettings,
    RolloutSettings,
    TrainingSettings,
)
from palate.datasets import parquet
from palate.doors import assembly, crowd, encoding, judging, lookup
from palate.doors.crowd import TASTE, WORLD
from palate.doors.meter import Meter, metered
from palate.evaluation import report
from palate.models.contracts import Media
from palate.models.diffusion import DiffusionPolicy
from palate.training import adapters
from palate.training.offline import Offline
from palate.training.online import Online
from palate.training.sources import PreferenceRow
from palate.worlds import shapes
from palate.worlds.shapes import annotators

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
    policy = lookup.load_policy(ModelSettings(name=WORLD, device="cpu", lora=plan.lora), seed)
    sampler = lookup.settings_of(WORLD, policy)

    def preferences() -> list[PreferenceRow]:
        folder = out / "preferences"
        if not (folder / "manifest.json").is_file():
            people, prompts = annotators.panel(5, TASTE, seed=seed), some(shapes.prompts("train"), plan.prompts, seed)
            asked = crowd.ask(policy, people, prompts, k=plan.k, votes=plan.votes, seed=seed, sampler=sampler, say=say)
            parquet.write(folder, asked)
        meter.keep()
        return encoding.encode(policy, encoding.read_preferences(folder, 0.0))

    source, reference = source_for(policy, algorithm, options, plan.training, plan, seed, preferences)
    look = watch(policy, out, plan, seed, lambda said: source.note(said))

    def evaluate(step: int) -> Mapping[str, float]:
        meter.keep()
        return look(step)

    say(f"aligning with {settings['method']}")
    result = assembly.fit(
        policy, algorithm, options, source, plan.training, out, reference=reference, evaluate=evaluate, locked=True
    )
    return conclude(policy, out, plan, settings, result, meter, algorithm, source)


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
        return assembly.offline_source(policy, list(preferences()), algorithm, options, training, 0.1), reference
    people = annotators.panel(5, TASTE, seed=seed)
    scorer = _true_reward if told_the_truth(algorithm) else partial(crowd.win_share, people, plan.votes)
    rollout, sampler = _rollout(plan), lookup.settings_of(WORLD, policy)
    source = assembly.online_source(
        policy, algorithm, options, shapes.prompts("train"), scorer, rollout, training, sampler, reference
    )
    return source, reference


def _rollout(plan: Plan) -> RolloutSettings:
    return RolloutSettings(prompts=f"{WORLD}:train", scorers={WORLD: 1.0}, **plan.rollout)


def told_the_truth(algorithm: Any) -> bool:
    """Whether a method needs the reward itself, one sample at a time, so that comparisons would not do."""
    return bool(algorithm.NEEDS.source == "online" and algorithm.NEEDS.k == 1)


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
    source: Offline | Online,
) -> dict[str, Any]:
    """Base and tuned on prompts and seeds not trained on; result.json and report.html."""
    seed = settings["seed"]
    _, prompts = eval_prompts(plan, seed)
    say(f"judging on {len(prompts)} prompts the model was not trained on")
    wanted = EvaluationSettings(prompts=prompts, scorers={WORLD: 1.0}, n=1, seed=seed + 1_000_003, batch_size=32)
    judged = judging.judge(policy, WORLD, wanted, out, source.prompts, weights=TASTE, by="the known truth", show=24)
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
        "trained_on": assembly.trained_on(source),
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
    found: dict[str, Any] = json.loads((out / "result.json").read_text(encoding="utf-8"))  # as a later call gives it
    return found


def _pairs_asked_about(out: Path, plan: Mapping[str, Any]) -> int:
    """Pairs of pictures that people were shown: all of the stored preferences, or round by round."""
    if (out / "preferences").is_dir():
        rows = parquet.read(out / "preferences")
        return sum(int((~np.isnan(np.asarray(row.prefer))).sum()) // 2 for row in rows)
    logged = (json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    rounds = 1 + max((int(row["round"]) for row in logged if "round" in row), default=-1)
    k = plan["rollout"]["k"]
    return rounds * int(plan["rollout"]["prompts_per_round"]) * k * (k - 1) // 2


def some(prompts: Sequence[str], n: int, seed: int) -> list[str]:
    """n of the prompts by their keyed order: the same whatever else is drawn."""
    return sorted(prompts, key=lambda prompt: randomness.key(seed, "prompt", prompt))[:n]


# --- the demo's folder ------------------------------------------------------------------------------------------------


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
