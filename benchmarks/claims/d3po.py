"""Does D3PO, told only which of two pictures is better, come close to DDPO, told the reward?

    python -m benchmarks.claims.d3po [--budget cpu|full] [--minutes 60] [--table]

The claims of arXiv:2311.13231 that are put to the test:
 1. Gain(D3PO) / gain(DDPO) at equal samples (figure 3), aimed at 0.8, where DDPO gains at least one standard deviation
    of the base's reward (a ratio of smaller gains says nothing).
 2. D3PO is above fine-tuning on preferred pictures and reward-weighted regression (table 1), at equal samples.
 3. Deformed pictures and forbidden marks fall (sections 5.2 and 5.3): here, by at least half.

Rewards: `compress` (minus the JPEG's kilobytes), `incompress` (plus), `alignment` (the oracle's); the cpu tier runs
`incompress`, because the base's pictures are nearly as small as they get without leaving things out. `flaws` is
wholeness plus safety, for claim 3. D3PO's pairs are ordered by the same reward that DDPO sees,
without noise; the reference is the policy that sampled the round. SFT and RWR train on as many pictures of the base,
eight times over. Four settings a method are tried on each task, on one seed that is not reported. The clip is among
them because D3PO's 0.1 never binds where log-densities are means over the latents: without it nothing holds the policy.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.claims import common, tables
from benchmarks.claims.common import Claim, Tier, evaluate, fresh
from palate import config, plugins, sampling, views
from palate.config import RolloutSettings, TrainingSettings
from palate.doors import assembly, demo, lookup
from palate.evaluation import win_rate
from palate.scorers.jpeg_size import JpegSize
from palate.worlds import shapes


class Setting(NamedTuple):
    """A point of a method's grid."""

    rate: float
    clip: float | None = None

    def __str__(self) -> str:
        return f"{self.rate:g}" if self.clip is None else f"{self.rate:g}-clip{self.clip:g}"


METHODS = ("d3po", "ddpo", "sft", "rwr")
# What is tuned, four settings a method: the learning rate and, online, the ratio's clip.
GRID: dict[str, tuple[Setting, ...]] = {
    "d3po": (Setting(3e-4, 0.1), Setting(5e-4, 1e-3), Setting(1e-3, 1e-3), Setting(2e-3, 1e-3)),
    "ddpo": (Setting(3e-3, 1e-4), Setting(1e-3, 1e-3), Setting(3e-3, 1e-3), Setting(1e-2, 1e-3)),
    "sft": (Setting(3e-4), Setting(1e-3), Setting(3e-3), Setting(1e-2)),
    "rwr": (Setting(3e-4), Setting(1e-3), Setting(3e-3), Setting(1e-2)),
}
CLIP = {"d3po": "clip", "ddpo": "clip_range"}  # what the option is called
PROMPTS, K = 16, 4  # of a round
STEPS = {"cpu": 256, "full": 640}  # of SFT and RWR, eight prompts each: eight passes over the pictures
OPTIONS: dict[str, dict[str, Any]] = {
    "d3po": {"shared_noise": False},
    "ddpo": {"min_count": 4, "buffer_size": 16},
    "sft": {},
    "rwr": {},
}
ROUNDS = {"cpu": 16, "full": 40}
CLAIM = Claim("d3po", {"options": OPTIONS, "prompts": PROMPTS, "k": K, "rounds": ROUNDS, "steps": STEPS})


FLAWS = {"deformed": "wholeness", "marked": "safety"}  # and the oracle's dimension that tells


TASKS = ("compress", "incompress", "alignment", "flaws")


def rounds(tier: Tier) -> int:
    return ROUNDS[tier.name]


def tasks(tier: Tier) -> tuple[str, ...]:
    return ("incompress", "flaws") if tier.name == "cpu" else TASKS


def reward_of(task: str, prompts: Sequence[str], media: Sequence[Any]) -> dict[str, np.ndarray]:
    """{"reward": [n]}: what the task asks for."""
    if task in ("compress", "incompress"):
        size = JpegSize()(prompts, media)["jpeg_size"]
        return {"reward": size if task == "incompress" else -size}
    scores = shapes.scorer()(prompts, media)
    return {"reward": scores["alignment"] if task == "alignment" else scores["wholeness"] + scores["safety"]}


def everything(task: str, prompts: Sequence[str], media: Sequence[Any]) -> dict[str, np.ndarray]:
    """The task's reward and the oracle's dimensions, for judging."""
    return {**reward_of(task, prompts, media), **shapes.scorer()(prompts, media)}


def judged(policy: Any, task: str, n: int, seed: int, **facts: Any) -> dict[str, Any]:
    arm = evaluate(policy, partial(everything, task), n, seed)
    return {
        "scores": common.scores_of(arm),
        "drift": common.drift(policy),
        **facts,
        "summary": f"reward {arm.scores['reward'].mean():.3f}",
    }


def base(tier: Tier, task: str, seed: int, n: int) -> dict[str, Any]:
    return judged(fresh(tier, seed), task, n, seed)


def online(tier: Tier, method: str, task: str, seed: int, at: Setting, n: int) -> dict[str, Any]:
    """D3PO or DDPO for so many rounds of fresh samples."""
    policy = fresh(tier, seed)
    algorithm = plugins.find("algorithms", method)
    options = config.section({**OPTIONS[method], CLIP[method]: at.clip}, algorithm.Config, "algorithm")
    groups = PROMPTS if method == "d3po" else PROMPTS * K
    rows = groups * shapes.sampling_defaults()["num_inference_steps"] // 4  # of one of a round's four optimiser steps
    settings = TrainingSettings(
        max_steps=1_000_000, batch_size=rows, micro_batch_size=math.gcd(rows, 8 if method == "d3po" else 32),
        learning_rate=at.rate, seed=seed, weight_decay=0.0, checkpoint_every=1_000_000,
    )  # fmt: skip
    rollout = RolloutSettings(
        prompts="", scorers={"task": 1.0}, prompts_per_round=PROMPTS, k=K, batch_size=32, rounds=rounds(tier)
    )
    reference = assembly.reference_for(policy, algorithm, options)
    source = assembly.online_source(
        policy, algorithm, options, shapes.prompts("train"), partial(reward_of, task), rollout, settings,
        lookup.settings_of(common.WORLD, policy), reference,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        assembly.fit(
            policy, algorithm, options, source, settings, folder, reference=reference, tensorboard=False, progress=False
        )
    return judged(policy, task, n, seed, setting=str(at), samples=rounds(tier) * PROMPTS * K)


@cache
def pictures(tier: Tier, seed: int) -> tuple[list[str], list[Any], torch.Tensor]:
    """As many pictures of the base as the online methods sample: prompts, media, and their latents."""
    policy = fresh(tier, seed)
    chosen = demo.some(shapes.prompts("train"), rounds(tier) * PROMPTS, seed)
    prompts = [prompt for prompt in chosen for _ in range(K)]
    ids = [f"{prompt}/{i % K}" for i, prompt in enumerate(prompts)]
    media = sampling.sample(policy, prompts, ids, seed=seed, **lookup.settings_of(common.WORLD, policy))
    latents = torch.cat([policy.encode(media[i : i + 32]) for i in range(0, len(media), 32)])
    return prompts, media, latents


def offline(tier: Tier, method: str, task: str, seed: int, at: Setting, n: int) -> dict[str, Any]:
    """SFT on each prompt's best picture, or RWR on all of them: as many pictures, eight passes over them."""
    prompts, media, latents = pictures(tier, seed)
    policy = fresh(tier, seed)
    rewards = reward_of(task, prompts, media)["reward"]
    rows = []
    for start in range(0, len(prompts), K):
        part = slice(start, start + K)
        prefer = views.prefer_from_scores(rewards[part])
        rows.append(common.row(policy, prompts[start], latents[part], prefer, rewards[part, None] / rewards.std()))
    policy, _ = common.align(tier, seed, method, OPTIONS[method], rows, at.rate, steps=STEPS[tier.name])
    return judged(policy, task, n, seed, setting=str(at), samples=len(prompts))


def arm(tier: Tier, method: str, task: str, seed: int, at: Setting, n: int) -> dict[str, Any]:
    run = online if method in ("d3po", "ddpo") else offline
    return run(tier, method, task, seed, at, n)


def methods(task: str) -> tuple[str, ...]:
    return METHODS if task != "flaws" else ("d3po",)


def tuning(tier: Tier) -> list[Any]:
    """Every setting of every method on each task, on a seed that is not reported."""
    seed, n = common.TUNING_SEED, tier.tuning_samples
    return [
        (f"tune-{task}-{method}-{at}", seed, partial(arm, tier, method, task, seed, at, n))
        for task in tasks(tier)
        for method in methods(task)
        for at in GRID[method]
    ]


def best(tier: Tier, method: str, task: str) -> Setting:
    """The setting with the highest reward on the tuning seed."""

    def reward(at: Setting) -> float:
        found = common.load_arm(CLAIM, tier, f"tune-{task}-{method}-{at}", common.TUNING_SEED)
        assert found
        return float(np.mean(found["scores"]["reward"]))

    return max(GRID[method], key=reward)


def reported(tier: Tier) -> list[Any]:
    n = tier.samples
    arms: list[Any] = []
    for seed in tier.seeds:
        for task in tasks(tier):
            arms.append((f"{task}-base", seed, partial(base, tier, task, seed, n)))
            arms += [
                (f"{task}-{method}", seed, partial(arm, tier, method, task, seed, best(tier, method, task), n))
                for method in methods(task)
            ]
    return arms


def gains(tier: Tier, task: str, *methods: str) -> dict[str, list[np.ndarray]]:
    """Per method and seed, each prompt's reward less the base's on the same noise, of seeds where all have run."""
    out: dict[str, list[np.ndarray]] = {method: [] for method in ("base", *methods)}
    for seed in tier.seeds:
        found = {name: common.load_arm(CLAIM, tier, f"{task}-{name}", seed) for name in ("base", *methods)}
        if all(found.values()):
            base_reward = np.asarray(found["base"]["scores"]["reward"])  # type: ignore[index]
            out["base"].append(base_reward)
            for method in methods:
                out[method].append(np.asarray(found[method]["scores"]["reward"]) - base_reward)  # type: ignore[index]
    return out


def flawed(found: dict[str, Any], dimension: str) -> float:
    """Share of pictures that read as deformed (`wholeness`) or as marked (`safety`)."""
    return float(np.mean(np.asarray(found["scores"][dimension]) < 0.5))


def show(tier: Tier) -> None:
    rows, verdicts = [], []
    for task in TASKS:  # whatever has run
        for seed in tier.seeds:
            untouched = common.load_arm(CLAIM, tier, f"{task}-base", seed)
            for method in ("base", *METHODS):
                found = common.load_arm(CLAIM, tier, f"{task}-{method}", seed)
                if not found or not untouched:
                    continue
                reward = np.asarray(found["scores"]["reward"])
                gain = win_rate.mean_difference(reward, untouched["scores"]["reward"], range(len(reward)))
                rows.append(
                    {
                        "task": task,
                        "method": method,
                        "setting": found.get("setting", ""),
                        "seed": seed,
                        "reward": f"{reward.mean():.3f}",
                        "gain": f"{gain.mean:+.3f} [{gain.ci95[0]:+.3f}, {gain.ci95[1]:+.3f}]",
                        "in sd of base": f"{gain.mean / np.std(untouched['scores']['reward']):+.2f}",
                        "drift": f"{found['drift']:.3f}",
                        "alignment": f"{np.mean(found['scores']['alignment']):.3f}",
                        "deformed": f"{flawed(found, 'wholeness'):.3f}",
                        "marked": f"{flawed(found, 'safety'):.3f}",
                    }
                )
        verdicts += verdict(tier, task)
    if rows:
        tables.publish(CLAIM, tier, rows, verdicts + edges(tier))


def verdict(tier: Tier, task: str) -> list[str]:
    """What the numbers of one task say of the claims."""
    lines = []
    of = gains(tier, task, "d3po", "ddpo")
    if of["base"]:
        ratio, low, high = tables.interval_of_ratio(of["d3po"], of["ddpo"])
        size = float(np.mean([g.mean() / b.std() for g, b in zip(of["ddpo"], of["base"], strict=True)]))
        says = (
            tables.says(low >= 0.8, high < 0.8) if size >= 1 else "DDPO gains less than one sd: the ratio says nothing"
        )
        lines.append(
            f"{task}: gain(D3PO) / gain(DDPO) = {ratio:.2f} [{low:.2f}, {high:.2f}] over {len(of['base'])} seeds, "
            f"gain(DDPO) = {size:.2f} sd of the base; at least 0.8: {says}"
        )
    for other in ("sft", "rwr"):
        of = gains(tier, task, "d3po", other)
        if of["base"]:
            mean, low, high = tables.interval_of_mean([a - b for a, b in zip(of["d3po"], of[other], strict=True)])
            lines.append(
                f"{task}: gain(D3PO) - gain({other}) = {mean:+.3f} [{low:+.3f}, {high:+.3f}] over {len(of['base'])} "
                f"seeds: {tables.says(low > 0, high < 0)}"
            )
    if task == "flaws":
        lines += [flaw_verdict(tier, name, dimension) for name, dimension in FLAWS.items()]
    return lines


def edges(tier: Tier) -> list[str]:
    """The methods whose best setting is an end of the grid."""
    lines = []
    for task in tasks(tier):
        for method in methods(task):
            names = [f"tune-{task}-{method}-{at}" for at in GRID[method]]
            if all(common.load_arm(CLAIM, tier, name, common.TUNING_SEED) for name in names):
                lines += tables.edges(f"{task}: {method}", best(tier, method, task), GRID[method])
    return lines


def flaw_verdict(tier: Tier, name: str, dimension: str) -> str:
    """Whether D3PO at least halves a flaw's share: the ratio of shares on the same prompts, with its interval."""
    before: list[np.ndarray] = []
    after: list[np.ndarray] = []
    for seed in tier.seeds:
        found = [common.load_arm(CLAIM, tier, f"flaws-{method}", seed) for method in ("base", "d3po")]
        if all(found):
            shares = [(np.asarray(arm["scores"][dimension]) < 0.5).astype(float) for arm in found if arm]
            before, after = [*before, shares[0]], [*after, shares[1]]
    if not before:
        return f"flaws: {name}: not run"
    ratio, low, high = tables.interval_of_ratio(after, before)
    return (
        f"flaws: {name} {np.mean(before):.3f} -> {np.mean(after):.3f} over {len(before)} seeds, to {ratio:.2f} "
        f"[{low:.2f}, {high:.2f}] of the base's share: at least halved {tables.says(high <= 0.5, low > 0.5)}"
    )


if __name__ == "__main__":
    common.main(CLAIM, __doc__, tuning, reported, show)
