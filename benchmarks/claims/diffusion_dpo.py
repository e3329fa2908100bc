"""Does Diffusion-DPO do what its paper claims, in a world whose truth is known?

    python -m benchmarks.claims.diffusion_dpo [--budget cpu|full] [--minutes 60] [--table]

The claims of arXiv:2311.12908 that are put to the test:
 1. DPO on pairs beats fine-tuning on their winners, and the base.
 2. Pseudo-labels of a cleaner judge beat noisy human labels (section 5.3).
 3. The strength beta has an optimum: too weak a leash breaks the model, too strong a one holds it still.
 4. The implicit reward ranks held-out pairs above chance (section 5.4).

Pictures: k of each of P training prompts by the base model. Labels: `noisy` is one vote a pair of simulated people who
lapse in a fifth of their answers; `clean` is the exact oracle. Every arm sees the same pictures and takes the same
number of steps; each method's learning rate is tuned over the same grid on one seed that is not reported.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np
import torch

from benchmarks.claims import common, tables
from benchmarks.claims.common import Claim, Tier, evaluate, fresh
from palate import likelihood
from palate.doors import crowd, demo, encoding, lookup
from palate.media import decode
from palate.models.contracts import Draw
from palate.randomness import generator
from palate.training import adapters
from palate.training.sources import PreferenceRow, collate, to_device
from palate.worlds import shapes
from palate.worlds.shapes import annotators

DROPOUT = 0.1
RATES = (2e-4, 5e-4, 1e-3)
BETAS = (100.0, 300.0, 1000.0, 3000.0, 10000.0)
BETA = 1000.0  # of the tuning and the headline
NOISY = {"temperature": 0.3, "lapse_rate": 0.2, "tie_threshold": 0.02}
CLEAN = {"temperature": 0.0, "lapse_rate": 0.0, "tie_threshold": 1e-6}  # equal rewards tie, they are not guessed at
STEPS, BATCH = 160, 8
K = 4
PROMPTS = {"cpu": 192, "full": 768}
CLAIM = Claim(
    "diffusion_dpo",
    {"noisy": NOISY, "clean": CLEAN, "steps": STEPS, "batch": BATCH, "k": K, "sweep_at": BETA, "dropout": DROPOUT},
)


@cache
def labelled(tier: Tier, seed: int, labels: str) -> tuple[PreferenceRow, ...]:
    """The base's pictures of training prompts with one kind of label; the last eighth of the prompts is held out."""
    policy = fresh(tier, seed)
    traits = NOISY if labels == "noisy" else CLEAN
    people = annotators.panel(5, demo.TASTE, disagreement=0.3 if labels == "noisy" else 0.0, seed=seed, **traits)
    prompts = demo.some(shapes.prompts("train"), PROMPTS[tier.name], seed)
    sampler = lookup.settings_of(common.WORLD, policy)
    asked = crowd.ask(policy, people, prompts, k=K, votes=1, seed=seed, sampler=sampler)
    pictures = [(row, [decode(medium) for medium in row.media if medium]) for row in asked]
    return tuple(encoding.encode(policy, pictures))


def split(rows: tuple[PreferenceRow, ...]) -> tuple[list[PreferenceRow], list[PreferenceRow]]:
    cut = len(rows) * 7 // 8
    return list(rows[:cut]), list(rows[cut:])


def trained(tier: Tier, seed: int, method: str, labels: str, rate: float, beta: float, n: int) -> dict[str, Any]:
    """One arm: train, judge on unseen prompts, rank the held-out pairs by the implicit reward."""
    train, held = split(labelled(tier, seed, labels))
    own = {"beta_dpo": beta} if method == "diffusion_dpo" else {}
    options = {**own, "prompt_dropout": DROPOUT}
    policy, result = common.align(tier, seed, method, options, train, rate, steps=STEPS, batch_size=BATCH)
    arm = evaluate(policy, shapes.scorer(), n, seed)
    clean = split(labelled(tier, seed, "clean"))[1] if labels == "noisy" else held
    return {
        "scores": common.scores_of(arm),
        "accuracy": accuracy(policy, clean),  # of each held-out prompt
        "drift": common.drift(policy),
        "displacement": {k: v for k, v in result.metrics.items() if k.startswith("displacement")},
        "rate": rate,
        "beta": beta,
        "summary": f"reward {np.mean(arm.reward(demo.TASTE)):.3f}",
    }


@torch.no_grad()
def accuracy(policy: Any, held: list[PreferenceRow], draws: int = 10) -> list[float]:
    """Of each held-out prompt that has decided pairs: the share that the implicit reward ranks as the oracle does."""
    batch = collate(held, [0] * len(held), policy.condition([""]))
    batch = to_device(batch, policy.device)
    total = torch.zeros(batch.mask.shape, device=policy.device)
    reference = adapters.reference_of(policy, "base")
    for visit in range(draws):
        source = generator("accuracy", visit)
        shape = batch.x0.shape[2:]
        draw = Draw(
            policy.path.sample_t(len(batch), source), torch.randn(len(batch), *shape, generator=source),
            torch.zeros(len(batch)) > 0,
        )  # fmt: skip
        draw = to_device(draw, policy.device)
        total += likelihood.denoising(policy, batch.x0, batch.cond, draw)
        total -= likelihood.denoising(reference, batch.x0, batch.cond, draw)  # type: ignore[arg-type]
    margin = total[:, :, None] - total[:, None]
    decided = (batch.prefer > 0.5).float()
    right = ((margin > 0).float() + 0.5 * (margin == 0).float()) * decided
    pairs = decided.sum((1, 2))
    return [round(float(v), 4) for v in (right.sum((1, 2)) / pairs)[pairs > 0]]


def base(tier: Tier, seed: int, n: int) -> dict[str, Any]:
    arm = evaluate(fresh(tier, seed), shapes.scorer(), n, seed)
    return {"scores": common.scores_of(arm), "summary": f"reward {np.mean(arm.reward(demo.TASTE)):.3f}"}


def tuning(tier: Tier) -> list[Any]:
    seed, n = common.TUNING_SEED, tier.tuning_samples
    return [
        (f"tune-{method}-{rate:g}", seed, partial(trained, tier, seed, method, "noisy", rate, BETA, n))
        for method in ("diffusion_dpo", "sft")
        for rate in RATES
    ]


def best_rate(tier: Tier, method: str) -> float:
    """The rate with the highest reward on the tuning seed."""

    def reward(rate: float) -> float:
        found = common.load_arm(CLAIM, tier, f"tune-{method}-{rate:g}", common.TUNING_SEED)
        assert found
        return float(np.sum([np.mean(found["scores"][name]) for name in demo.TASTE]))

    return max(RATES, key=reward)


def reported(tier: Tier) -> list[Any]:
    n, arms = tier.samples, []
    dpo, sft = best_rate(tier, "diffusion_dpo"), best_rate(tier, "sft")
    for seed in tier.seeds:
        arms += [
            ("base", seed, partial(base, tier, seed, n)),
            ("dpo-noisy", seed, partial(trained, tier, seed, "diffusion_dpo", "noisy", dpo, BETA, n)),
            ("sft-noisy", seed, partial(trained, tier, seed, "sft", "noisy", sft, BETA, n)),
            ("dpo-clean", seed, partial(trained, tier, seed, "diffusion_dpo", "clean", dpo, BETA, n)),
        ]
    sweep = tier.seeds[:1] if tier.name == "cpu" else tier.seeds
    for seed in sweep:
        arms += [
            (f"dpo-beta{beta:g}", seed, partial(trained, tier, seed, "diffusion_dpo", "noisy", dpo, beta, n))
            for beta in BETAS
            if beta != BETA
        ]
    return arms


def show(tier: Tier) -> None:
    rows: list[dict[str, Any]] = []
    others = [f"dpo-beta{beta:g}" for beta in BETAS if beta != BETA]
    for name in ("base", "sft-noisy", "dpo-noisy", "dpo-clean", *others):
        for seed in tier.seeds:
            found = common.load_arm(CLAIM, tier, name, seed)
            reference = common.load_arm(CLAIM, tier, "base", seed)
            if not found or not reference:
                continue
            won = tables.wins(found, reference, demo.TASTE)
            rate = f"{won.rate:.3f} [{won.ci95[0]:.3f}, {won.ci95[1]:.3f}]"
            means = {d: f"{np.mean(found['scores'][d]):.3f}" for d in demo.TASTE}
            rows.append(
                {
                    "arm": name,
                    "seed": seed,
                    "wins over base": "" if name == "base" else rate,
                    "ties": "" if name == "base" else f"{won.ties:.2f}",
                    **means,
                    "held-out accuracy": f"{np.mean(found['accuracy']):.3f}" if found.get("accuracy") else "",
                    "drift": f"{found['drift']:.3f}" if "drift" in found else "",
                }
            )
    if rows:
        tables.publish(CLAIM, tier, rows, verdicts(tier))


def verdicts(tier: Tier) -> list[str]:
    """What the numbers say of each claim, with intervals over prompts and seeds."""
    lines: list[str] = []
    for arm, other, least, claim in (
        ("dpo-noisy", "base", 0.65, "1. DPO beats the base, by at least 0.65"),
        ("dpo-noisy", "sft-noisy", 0.5, "1. DPO beats fine-tuning on the winners"),
        ("dpo-clean", "dpo-noisy", 0.5, "2. clean labels beat noisy ones"),
        ("dpo-clean", "base", 0.65, "2. clean labels beat the base, by at least 0.65"),
    ):
        lines += tables.versus(CLAIM, tier, arm, other, demo.TASTE, claim, least)
    lines += sweep(tier)
    for labels in ("noisy", "clean"):
        found = [common.load_arm(CLAIM, tier, f"dpo-{labels}", seed) for seed in tier.seeds]
        shares = [np.asarray(arm["accuracy"]) for arm in found if arm and arm["accuracy"]]
        if shares:
            mean, low, high = tables.interval_of_mean(shares)
            lines.append(
                f"4. the implicit reward learnt from {labels} labels ranks {mean:.3f} [{low:.3f}, {high:.3f}] of the "
                f"held-out pairs as the oracle does; above chance: {tables.says(low > 0.5, high < 0.5)}"
            )
    return lines


def sweep(tier: Tier) -> list[str]:
    """Win rates over the base along the grid of betas, on the seeds for which all of them have run."""
    names = {beta: "dpo-noisy" if beta == BETA else f"dpo-beta{beta:g}" for beta in BETAS}
    duels: dict[float, list[np.ndarray]] = {beta: [] for beta in BETAS}
    for seed in tier.seeds:
        base_arm = common.load_arm(CLAIM, tier, "base", seed)
        found = {beta: common.load_arm(CLAIM, tier, name, seed) for beta, name in names.items()}
        if base_arm and all(found.values()):
            for beta, arm in found.items():
                duels[beta].append(tables.outcomes(arm or {}, base_arm, demo.TASTE))
    seeds = len(duels[BETAS[0]])
    if not seeds:
        return []
    rates = {beta: float(np.mean(duels[beta])) for beta in BETAS}
    best = max(rates, key=lambda beta: rates[beta])
    along = ", ".join(f"{beta:g}: {rate:.3f}" for beta, rate in rates.items())
    gaps = []
    for end in (BETAS[0], BETAS[-1]):
        if end != best:
            gap, low, high = tables.interval_of_mean([a - b for a, b in zip(duels[best], duels[end], strict=True)])
            gaps.append(f"{gap:+.3f} [{low:+.3f}, {high:+.3f}] over {end:g}")
    where = "an end of the grid, so no optimum is shown" if best in (BETAS[0], BETAS[-1]) else "inside the grid"
    return [
        f"3. wins over the base by beta_dpo, {seeds} seed{'s' * (seeds > 1)}, the rate tuned at {BETA:g}: {along}; "
        f"the best, {best:g}, is {where} ({'; '.join(gaps)})"
    ]


if __name__ == "__main__":
    common.main(CLAIM, __doc__, tuning, reported, show)
