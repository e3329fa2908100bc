"""Does Syn-Pic do what its paper claims: do models label as well as people, and several better than one?

    python -m benchmarks.claims.syn_pic [--budget cpu|full] [--minutes 60] [--table]

The claims of arXiv:2410.18013 (sections 3.2 and 4) that are put to the test, all with RankDPO on the same pictures:
 1. An ensemble of five noisy scorers labels better than one of them.
 2. It labels better than people who disagree, one vote a pair, as Pick-a-Pic has them.
 3. Random labels gain nothing, and do no harm.

Pictures: four of each of P training prompts by the base model, the same for all labels of a seed. Scorers: the true
reward with noise of their own; a person: a taste of their own, choices by Bradley and Terry's chance, lapses. `right`
is the share of pairs of pictures that a kind of label orders as the truth does, ties half, before anything is trained:
how good the labels are, apart from what training makes of them.
Every arm takes the same number of steps of as many prompts; the learning rate is tuned on one seed that is not
reported, for the ensemble and, in favour of the others, for each of them too.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np
import torch

from benchmarks.claims import common, tables
from benchmarks.claims.common import Claim, Tier, evaluate, fresh
from palate import losses, sampling, views
from palate.doors import crowd, demo, lookup
from palate.training.sources import PreferenceRow
from palate.worlds import shapes
from palate.worlds.shapes import annotators

METHOD: dict[str, Any] = {"loss": "sigmoid", "beta": 500.0, "prompt_dropout": 0.1}  # of MEAN errors, with no half
RATES = (2e-4, 5e-4, 1e-3)
SCORERS, NOISE = 5, 0.5  # a scorer's noise, in units of the true reward, which lies from 0 to 3
PEOPLE: dict[str, float] = {"disagreement": 0.3, "temperature": 0.3, "tie_threshold": 0.05, "lapse_rate": 0.1}
STEPS, BATCH, K = 160, 8, 4
PROMPTS = {"cpu": 192, "full": 768}
LABELS = ("ensemble", "single", "votes", "random")
CLAIM = Claim(
    "syn_pic",
    {
        "method": METHOD, "rates": RATES, "scorers": SCORERS, "noise": NOISE, "people": PEOPLE, "steps": STEPS,
        "batch": BATCH, "k": K, "prompts": PROMPTS,
    },
)  # fmt: skip


@cache
def pictures(tier: Tier, seed: int) -> tuple[Any, list[str], list[torch.Tensor], dict[str, np.ndarray]]:
    """The base, training prompts, latents [K, ...] of its pictures of each, and their true scores [P * K]."""
    policy = fresh(tier, seed)
    prompts = demo.some(shapes.prompts("train"), PROMPTS[tier.name], seed)
    latents: list[torch.Tensor] = []
    parts: list[dict[str, np.ndarray]] = []
    for start in range(0, len(prompts), 8):
        some = [prompt for prompt in prompts[start : start + 8] for _ in range(K)]
        ids = [f"{prompt}/{i % K}" for i, prompt in enumerate(some)]
        media = sampling.sample(policy, some, ids, seed=seed, **lookup.settings_of(common.WORLD, policy))
        parts.append(shapes.scorer()(some, media))
        latents += policy.encode(media).cpu().split(K)
    return policy, prompts, latents, {name: np.concatenate([part[name] for part in parts]) for name in demo.TASTE}


def truth(scores: dict[str, np.ndarray]) -> np.ndarray:
    """True rewards [P, K]."""
    return np.sum([weight * scores[name] for name, weight in demo.TASTE.items()], axis=0).reshape(-1, K)


@cache
def labelled(tier: Tier, seed: int, labels: str) -> tuple[np.ndarray, np.ndarray]:
    """What one kind of label says: scores [P, K, D], of which RankDPO makes phi, and phi [P, K]."""
    _, prompts, _, scores = pictures(tier, seed)
    true = truth(scores)
    noise = np.random.default_rng(seed).standard_normal((*true.shape, SCORERS))
    if labels == "votes":
        given = voted(prompts, scores, seed)[..., None]
    else:
        many = noise if labels == "random" else true[..., None] + NOISE * noise
        given = many[..., :1] if labels == "single" else many
    phi = losses.win_shares(torch.from_numpy(given), torch.ones(given.shape[:2]).bool()).numpy()
    return given, phi


def voted(prompts: list[str], scores: dict[str, np.ndarray], seed: int) -> np.ndarray:
    """Each picture's share of its comparisons that it won, ties half, one person's vote on each pair: [P, K]."""
    people = annotators.panel(20, demo.TASTE, seed=seed, **PEOPLE)
    ids = [f"{p}/{k}" for p in range(len(prompts)) for k in range(K)]
    votes = crowd.cast(people, ids, [prompt for prompt in prompts for _ in range(K)], scores, 1, "2026-01-01T00:00:00Z")
    preferred = [views.prefer_from_votes(ids[p : p + K], votes)[0] for p in range(0, len(ids), K)]
    return np.array([np.nanmean(table, axis=1) for table in preferred])


def right(true: np.ndarray, phi: np.ndarray) -> float:
    """The share of pairs with different true rewards [P, K] that phi [P, K] orders alike, its ties half."""
    apart, said = (np.sign(values[:, :, None] - values[:, None]) for values in (true, phi))
    pairs = np.triu(np.ones((K, K), bool), 1) & (apart != 0)
    return float((0.5 + 0.5 * apart * said)[pairs].mean())


def trained(tier: Tier, seed: int, labels: str, rate: float, n: int) -> dict[str, Any]:
    """One arm: RankDPO on one kind of label, judged on unseen prompts."""
    policy, prompts, latents, scores = pictures(tier, seed)
    given, phi = labelled(tier, seed, labels)
    rows: list[PreferenceRow] = [
        common.row(policy, prompts[i], latents[i], views.prefer_from_scores(phi[i]), given[i])
        for i in range(len(prompts))
    ]
    tuned, result = common.align(tier, seed, "rankdpo", METHOD, rows, rate, steps=STEPS, batch_size=BATCH)
    arm = evaluate(tuned, shapes.scorer(), n, seed)
    return {
        "scores": common.scores_of(arm),
        "right": round(right(truth(scores), phi), 4),
        "drift": common.drift(tuned),
        "metrics": {name: value for name, value in result.metrics.items() if "/" in name},
        "rate": rate,
        "summary": f"labels {right(truth(scores), phi):.1%} right, reward {np.mean(arm.reward(demo.TASTE)):.3f}",
    }


def base(tier: Tier, seed: int, n: int) -> dict[str, Any]:
    arm = evaluate(fresh(tier, seed), shapes.scorer(), n, seed)
    return {"scores": common.scores_of(arm), "summary": f"reward {np.mean(arm.reward(demo.TASTE)):.3f}"}


TUNED = LABELS[:3]  # random labels have no best rate: they take the ensemble's


def tuning(tier: Tier) -> list[Any]:
    seed, n = common.TUNING_SEED, tier.tuning_samples
    return [
        (f"tune-{labels}-{rate:g}", seed, partial(trained, tier, seed, labels, rate, n))
        for labels in TUNED
        for rate in RATES
    ]


def best_rate(tier: Tier, labels: str) -> float:
    """The rate with the highest reward on the tuning seed."""

    def reward(rate: float) -> float:
        found = common.load_arm(CLAIM, tier, f"tune-{labels}-{rate:g}", common.TUNING_SEED)
        assert found
        return float(np.mean(tables.rewards(found, demo.TASTE)))

    return max(RATES, key=reward)


def reported(tier: Tier) -> list[Any]:
    rates = {labels: best_rate(tier, labels if labels in TUNED else "ensemble") for labels in LABELS}
    arms: list[Any] = []
    for seed in tier.seeds:
        arms.append(("base", seed, partial(base, tier, seed, tier.samples)))
        arms += [(labels, seed, partial(trained, tier, seed, labels, rates[labels], tier.samples)) for labels in LABELS]
    return arms


def show(tier: Tier) -> None:
    if rows := tables.against_base(CLAIM, tier, LABELS, demo.TASTE, "labels", ("right",)):
        tables.publish(CLAIM, tier, rows, verdicts(tier))


def verdicts(tier: Tier) -> list[str]:
    """What the numbers say of each claim, with intervals over prompts and seeds."""
    lines: list[str] = []
    for arm, other, least, claim in (
        ("ensemble", "base", 0.5, "the ensemble's labels beat the base"),
        ("ensemble", "single", 0.5, "1. five scorers beat one"),
        ("ensemble", "votes", 0.5, "2. five scorers beat one person's votes"),
        ("ensemble", "random", 0.5, "3. labels beat random ones"),
        ("random", "base", 0.45, "3. random labels do no harm: they win more than 0.45"),
        ("random", "base", 0.5, "3. random labels gain something"),
    ):
        lines += tables.versus(CLAIM, tier, arm, other, demo.TASTE, claim, least)
    return lines


if __name__ == "__main__":
    common.main(CLAIM, __doc__, tuning, reported, show)
