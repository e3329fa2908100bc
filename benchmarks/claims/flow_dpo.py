"""Does Flow-DPO's constant beta beat the time-dependent one, and both the regressions? (VideoAlign, arXiv:2501.13918)

    python -m benchmarks.claims.flow_dpo --budget cpu      # within an hour on two cores
    python -m benchmarks.claims.flow_dpo --budget full     # a GPU; run again until nothing is left

The base of `world:shapes-flow` draws K pictures of each prompt. A reward model, the oracle with noise, scores them
once, offline, as in the paper, for two tasks:

    prompt   alignment alone, a conditional dimension (the paper's table 4, text alignment)
    all      alignment, wholeness and safety, each in its own deviations (table 3)

Claims: 1. a constant beta beats beta (1 - t)^2, whose beta is tuned over the same grid, and also given three times the
constant one's, since (1 - t)^2 averages a third (tables 3 and 4, figure 6); on `all` the time-dependent one gives up
the conditional dimension for the others. 2. Flow-DPO > Flow-RWR ~ SFT > base on what was trained for.
Every method is tuned over its grid on a seed that is not reported; the judge is the oracle, on unseen prompts.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.claims import common, tables
from benchmarks.claims.common import Claim, Tier
from palate import sampling, views
from palate.doors import demo, lookup
from palate.training.sources import PreferenceRow
from palate.worlds import shapes

WORLD = "world:shapes-flow"
DIMENSIONS = ("alignment", "wholeness", "safety")
TASKS = {"prompt": {"alignment": 1.0}, "all": dict.fromkeys(DIMENSIONS, 1.0)}
NOISE = 0.5  # of the reward model, in deviations of each dimension over the data
PROMPTS = {"cpu": 192, "full": 768}
K = 4
STEPS = {"cpu": 160, "full": 400}
DROPOUT = 0.1


class Setting(NamedTuple):
    """What is tuned: the learning rate, and beta or the temperature."""

    rate: float
    strength: float | None = None

    def __str__(self) -> str:
        return f"{self.rate:g}" + ("" if self.strength is None else f"-{self.strength:g}")


METHODS = ("sft", "rwr", "dpo", "dpo-t")
BETAS = (300.0, 1000.0, 3000.0)
GRID = {
    "sft": [Setting(rate) for rate in (1e-4, 3e-4, 1e-3)],
    "rwr": [Setting(rate, temperature) for rate in (1e-4, 3e-4, 1e-3) for temperature in (0.3, 1.0)],
    "dpo": [Setting(rate, beta) for rate in (3e-4, 1e-3) for beta in BETAS],
    "dpo-t": [Setting(rate, beta) for rate in (3e-4, 1e-3) for beta in BETAS],
}
CLAIM = Claim("flow_dpo", {"noise": NOISE, "k": K, "steps": STEPS, "prompts": PROMPTS, "dropout": DROPOUT}, WORLD)


@cache
def scored(tier: Tier, seed: int) -> tuple[list[str], torch.Tensor, np.ndarray]:
    """Prompts, latents [n, K, ...] and the reward model's scores [n, K, D] of the base's pictures."""
    policy = common.fresh(tier, seed, world=WORLD)
    prompts = demo.some(shapes.prompts("train"), PROMPTS[tier.name], seed)
    rows = [prompt for prompt in prompts for _ in range(K)]
    ids = [f"{prompt}/{i % K}" for i, prompt in enumerate(rows)]
    media = sampling.sample(policy, rows, ids, seed=seed, **lookup.settings_of(WORLD, policy))
    true = shapes.scorer()(rows, media)
    scores = np.stack([np.asarray(true[d], float) for d in DIMENSIONS], -1)
    deviations = np.maximum(scores.std(0), 1e-6)
    scores += NOISE * deviations * np.random.default_rng(seed).standard_normal(scores.shape)
    latents = torch.cat([policy.encode(media[i : i + 32]) for i in range(0, len(media), 32)]).cpu()
    return prompts, latents.unflatten(0, (-1, K)), (scores / deviations).reshape(-1, K, len(DIMENSIONS))


@cache
def labelled(tier: Tier, seed: int, task: str) -> tuple[PreferenceRow, ...]:
    """The scored pictures of one task: its dimensions, and every pair ordered by their sum."""
    prompts, latents, scores = scored(tier, seed)
    policy = common.fresh(tier, seed, world=WORLD)
    kept = scores[:, :, [DIMENSIONS.index(d) for d in TASKS[task]]]
    return tuple(
        common.row(policy, prompt, x0, views.prefer_from_scores(values.sum(-1)), values)
        for prompt, x0, values in zip(prompts, latents, kept, strict=True)
    )


def options_of(method: str, strength: float | None) -> tuple[str, dict[str, Any]]:
    """The algorithm's name and its options."""
    if method == "sft":
        return "sft", {"prompt_dropout": DROPOUT}
    if method == "rwr":
        return "flow_rwr", {"temperature": strength, "prompt_dropout": DROPOUT}
    weighting = "constant" if method == "dpo" else "one_minus_t_squared"
    return "flow_dpo", {"beta": strength, "weighting": weighting, "prompt_dropout": DROPOUT}


def trained(tier: Tier, method: str, task: str, seed: int, at: Setting, n: int) -> dict[str, Any]:
    algorithm, options = options_of(method, at.strength)
    rows = labelled(tier, seed, task)
    policy, _ = common.align(tier, seed, algorithm, options, rows, at.rate, steps=STEPS[tier.name], world=WORLD)
    return judged(policy, seed, n, setting=str(at), drift=common.drift(policy))


def base(tier: Tier, seed: int, n: int) -> dict[str, Any]:
    return judged(common.fresh(tier, seed, world=WORLD), seed, n)


def judged(policy: Any, seed: int, n: int, **facts: Any) -> dict[str, Any]:
    arm = common.evaluate(policy, shapes.scorer(), n, seed, world=WORLD)
    means = ", ".join(f"{d} {np.mean(arm.scores[d]):.3f}" for d in DIMENSIONS)
    return {"scores": common.scores_of(arm), **facts, "summary": means}


def tuning(tier: Tier) -> common.Arms:
    """Every setting of every method on each task, on a seed that is not reported."""
    seed, n = common.TUNING_SEED, tier.tuning_samples
    return [
        (f"tune-{task}-{method}-{at}", seed, partial(trained, tier, method, task, seed, at, n))
        for task in TASKS
        for method in METHODS
        for at in GRID[method]
    ]


def tuned(tier: Tier, task: str) -> bool:
    """Whether all that tunes a task has run."""
    names = [f"tune-{task}-{method}-{at}" for method in METHODS for at in GRID[method]]
    return all(common.load_arm(CLAIM, tier, name, common.TUNING_SEED) for name in names)


def best(tier: Tier, method: str, task: str) -> Setting:
    """The setting with the highest true reward on the tuning seed."""

    def reward(at: Setting) -> float:
        found = common.load_arm(CLAIM, tier, f"tune-{task}-{method}-{at}", common.TUNING_SEED)
        assert found
        return float(tables.rewards(found, TASKS[task]).mean())

    return max(GRID[method], key=reward)


def reported(tier: Tier) -> common.Arms:
    n = tier.samples
    arms: common.Arms = [("base", seed, partial(base, tier, seed, n)) for seed in common.few_seeds(tier)]
    for task in TASKS:
        chosen = {method: best(tier, method, task) for method in METHODS}
        constant = chosen["dpo"]
        assert constant.strength
        chosen["dpo-t-3beta"] = Setting(constant.rate, 3 * constant.strength)
        arms += [
            (f"{task}-{name}", seed, partial(trained, tier, name.removesuffix("-3beta"), task, seed, at, n))
            for seed in common.few_seeds(tier)
            for name, at in chosen.items()
        ]
    return arms


def show(tier: Tier) -> None:
    rows: list[dict[str, Any]] = []
    for task in TASKS:
        for name in ("base", *(f"{task}-{method}" for method in (*METHODS, "dpo-t-3beta"))):
            for seed in common.few_seeds(tier):
                found, untouched = (common.load_arm(CLAIM, tier, arm, seed) for arm in (name, "base"))
                if not found or not untouched:
                    continue
                won = tables.wins(found, untouched, TASKS[task])
                rows.append(
                    {
                        "task": task,
                        "arm": name.removeprefix(f"{task}-"),
                        "setting": found.get("setting", ""),
                        "seed": seed,
                        "wins over base": f"{won.rate:.3f} [{won.ci95[0]:.3f}, {won.ci95[1]:.3f}]"
                        if name != "base"
                        else "",
                        **{d: f"{np.mean(found['scores'][d]):.3f}" for d in DIMENSIONS},
                        "drift": f"{found['drift']:.3f}" if "drift" in found else "",
                    }
                )
    if rows:
        tables.publish(CLAIM, tier, rows, verdicts(tier))


def verdicts(tier: Tier) -> list[str]:
    """What the numbers say of each claim, with intervals over prompts and seeds."""
    lines: list[str] = []
    for task, weights in TASKS.items():

        def duel(arm: str, other: str, text: str, judge: dict[str, float] = weights, task: str = task) -> list[str]:
            names = [name if name == "base" else f"{task}-{name}" for name in (arm, other)]
            return tables.versus(CLAIM, tier, *names, judge, text)

        lines += duel("dpo", "dpo-t", f"1. {task}: a constant beta beats beta (1 - t)^2")
        lines += duel("dpo", "dpo-t-3beta", f"1. {task}: a constant beta beats 3 beta (1 - t)^2")
        for method in ("dpo-t", "dpo-t-3beta") if task == "all" else ():
            for dimension in DIMENSIONS:
                lines += duel("dpo", method, f"1. {task}, {dimension} alone", {dimension: 1.0})
        lines += duel("dpo", "rwr", f"2. {task}: Flow-DPO beats Flow-RWR")
        lines += duel("dpo", "sft", f"2. {task}: Flow-DPO beats SFT")
        lines += duel("rwr", "sft", f"2. {task}: Flow-RWR against SFT, said to be alike")
        lines += duel("sft", "base", f"2. {task}: SFT beats the base")
        if tuned(tier, task):
            for method in METHODS:
                lines += tables.edges(f"{task}: {method}", best(tier, method, task), GRID[method])
    return lines


if __name__ == "__main__":
    common.main(CLAIM, __doc__, tuning, reported, show)
