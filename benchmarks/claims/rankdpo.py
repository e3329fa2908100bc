"""Does RankDPO do what its paper claims, in a world whose truth is known?

    python -m benchmarks.claims.rankdpo [--budget cpu|full] [--minutes 60] [--table]

The claims of arXiv:2410.18013 that are put to the test:
 1. On the same ranked pictures RankDPO beats gain-weighted DPO, that DPO, that weighted fine-tuning, and that
    fine-tuning on the best (its ablation of objectives).
 2. Random labels gain nothing, and do no harm.
 3. An ensemble of noisy scorers labels better than one of them.
 4. Rankings match pairs on four times as many pictures.

Pictures: four of each of P training prompts by the base model. Labels: five scorers, each the true reward with noise of
its own. Every arm takes the same number of steps of as many prompts, with weights that are 1 on average; the learning
rate of each objective is tuned over the same grid on one seed that is not reported. `dpo` is over all pairs that phi
parts.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from benchmarks.claims import common, tables
from benchmarks.claims.common import Claim, Tier, evaluate, fresh
from palate import losses, sampling, views
from palate.doors import demo, lookup
from palate.training.sources import PreferenceRow
from palate.worlds import shapes

DROPOUT = 0.1
RATES = (2e-4, 5e-4, 1e-3)
BETA = 500.0  # of MEAN errors, with no half: Diffusion-DPO's 1000
TEMPERATURE = 0.25  # of the weighted fine-tuning, in units of phi
SCORERS, NOISE = 5, 0.5  # a scorer's noise, in units of the true reward, which lies from 0 to 3
STEPS, BATCH = 160, 8
K = 4
PROMPTS = {"cpu": 192, "full": 768}
RANKED = {"loss": "sigmoid", "beta": BETA, "prompt_dropout": DROPOUT}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {"prompt_dropout": DROPOUT}),
    "weighted-sft": ("rwr", {"temperature": TEMPERATURE, "prompt_dropout": DROPOUT}),
    "dpo": ("rankdpo", {"weights": "none", **RANKED}),
    "gain-dpo": ("rankdpo", {"weights": "gain", **RANKED}),
    "rankdpo": ("rankdpo", {"weights": "both", **RANKED}),
}
CLAIM = Claim(
    "rankdpo",
    {
        "methods": METHODS, "scorers": SCORERS, "noise": NOISE, "steps": STEPS, "batch": BATCH, "k": K, "rates": RATES,
        "prompts": PROMPTS,
    },
)  # fmt: skip
OTHERS = {  # arm: objective, labels
    "rankdpo-random": ("rankdpo", "random"),
    "rankdpo-single": ("rankdpo", "single"),
    "rankdpo-few": ("rankdpo", "few"),
    "dpo-pairs": ("dpo", "pairs"),
}


@cache
def pictures(tier: Tier, seed: int) -> tuple[Any, list[str], list[torch.Tensor], np.ndarray]:
    """The base, training prompts, latents [K, ...] of its pictures of each, and their true rewards [P, K]."""
    policy = fresh(tier, seed)
    prompts = demo.some(shapes.prompts("train"), PROMPTS[tier.name], seed)
    latents, rewards = [], []
    for start in range(0, len(prompts), 8):
        some = [prompt for prompt in prompts[start : start + 8] for _ in range(K)]
        ids = [f"{prompt}/{i % K}" for i, prompt in enumerate(some)]
        media = sampling.sample(policy, some, ids, seed=seed, **lookup.settings_of(common.WORLD, policy))
        scores = shapes.scorer()(some, media)
        rewards.append(sum(weight * scores[name] for name, weight in demo.TASTE.items()))
        latents += policy.encode(media).cpu().split(K)
    return policy, prompts, latents, np.concatenate(rewards).reshape(-1, K)


@cache
def labelled(tier: Tier, seed: int, labels: str) -> tuple[PreferenceRow, ...]:
    """Rows by one kind of label: `ensemble`, `single` (its first scorer), `random`, `few` (an eighth of the prompts, by
    the ensemble) or `pairs` (two pictures a prompt, four times those of `few`, by the first scorer)."""
    policy, prompts, latents, truth = pictures(tier, seed)
    noise = np.random.default_rng(seed).standard_normal((*truth.shape, SCORERS))
    scores = noise if labels == "random" else truth[..., None] + NOISE * noise
    number, k = (len(prompts) // 8 if labels == "few" else len(prompts)), (2 if labels == "pairs" else K)
    kept = scores[:, :k, :1] if labels in ("single", "pairs") else scores[:, :k]
    phi = losses.win_shares(torch.from_numpy(kept), torch.ones(kept.shape[:2]).bool()).numpy()
    return tuple(
        common.row(policy, prompts[i], latents[i][:k], views.prefer_from_scores(phi[i]), kept[i]) for i in range(number)
    )


def trained(tier: Tier, seed: int, objective: str, labels: str, rate: float, n: int) -> dict[str, Any]:
    """One arm: train on the labels, judge on unseen prompts."""
    method, options = METHODS[objective]
    rows = list(labelled(tier, seed, labels))
    if method == "rwr":
        rows = [weighted(row) for row in rows]
    policy, result = common.align(tier, seed, method, options, rows, rate, steps=STEPS, batch_size=BATCH)
    arm = evaluate(policy, shapes.scorer(), n, seed)
    return {
        "scores": common.scores_of(arm),
        "drift": common.drift(policy),
        "metrics": {name: value for name, value in result.metrics.items() if "/" in name},
        "rate": rate,
        "summary": f"reward {np.mean(arm.reward(demo.TASTE)):.3f}",
    }


def weighted(row: PreferenceRow) -> PreferenceRow:
    """The row with phi as its only score."""
    return replace(row, scores=losses.win_shares(row.scores[None], row.mask[None])[0, :, None].float())


def base(tier: Tier, seed: int, n: int) -> dict[str, Any]:
    arm = evaluate(fresh(tier, seed), shapes.scorer(), n, seed)
    return {"scores": common.scores_of(arm), "summary": f"reward {np.mean(arm.reward(demo.TASTE)):.3f}"}


def tuning(tier: Tier) -> list[Any]:
    seed, n = common.TUNING_SEED, tier.tuning_samples
    return [
        (f"tune-{name}-{rate:g}", seed, partial(trained, tier, seed, name, "ensemble", rate, n))
        for name in METHODS
        for rate in RATES
    ]


def best_rate(tier: Tier, objective: str) -> float:
    """The rate with the highest reward on the tuning seed."""

    def reward(rate: float) -> float:
        found = common.load_arm(CLAIM, tier, f"tune-{objective}-{rate:g}", common.TUNING_SEED)
        assert found
        return float(np.mean(tables.rewards(found, demo.TASTE)))

    return max(RATES, key=reward)


def reported(tier: Tier) -> list[Any]:
    rates, n, arms = {name: best_rate(tier, name) for name in METHODS}, tier.samples, []
    for seed in tier.seeds:
        arms.append(("base", seed, partial(base, tier, seed, n)))
        arms += [(name, seed, partial(trained, tier, seed, name, "ensemble", rates[name], n)) for name in METHODS]
        arms += [
            (arm, seed, partial(trained, tier, seed, objective, labels, rates[objective], n))
            for arm, (objective, labels) in OTHERS.items()
        ]
    return arms


def show(tier: Tier) -> None:
    if rows := tables.against_base(CLAIM, tier, (*METHODS, *OTHERS), demo.TASTE):
        tables.publish(CLAIM, tier, rows, verdicts(tier))


def verdicts(tier: Tier) -> list[str]:
    """What the numbers say of each claim, with intervals over prompts and seeds."""
    lines: list[str] = []
    for arm, other, least, claim in (
        ("rankdpo", "base", 0.5, "1. RankDPO beats the base"),
        ("rankdpo", "gain-dpo", 0.5, "1. RankDPO beats gain-weighted DPO"),
        ("gain-dpo", "dpo", 0.5, "1. gain-weighted DPO beats DPO"),
        ("rankdpo", "dpo", 0.5, "1. RankDPO beats DPO"),
        ("dpo", "weighted-sft", 0.5, "1. DPO beats weighted fine-tuning"),
        ("weighted-sft", "sft", 0.5, "1. weighted fine-tuning beats fine-tuning on the best"),
        ("rankdpo-random", "base", 0.45, "2. random labels do no harm: they win more than 0.45"),
        ("rankdpo", "rankdpo-random", 0.5, "2. labels beat random ones"),
        ("rankdpo", "rankdpo-single", 0.5, "3. five scorers beat one"),
        (
            "rankdpo-few",
            "dpo-pairs",
            0.45,
            "4. a quarter of the pictures, ranked, match pairs: above 0.45",
        ),
    ):
        lines += tables.versus(CLAIM, tier, arm, other, demo.TASTE, claim, least)
    gained = tables.versus(CLAIM, tier, "rankdpo-random", "base", demo.TASTE, "2. random labels gain something")
    return [*lines, *gained]


if __name__ == "__main__":
    common.main(CLAIM, __doc__, tuning, reported, show)
