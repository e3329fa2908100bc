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

import tempfile
import time
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from benchmarks.claims import common
from benchmarks.claims.common import Tier, evaluate, fresh
from palate import assembly, config, demo, likelihood, plugins
from palate.config import TrainingSettings
from palate.media import decode
from palate.models.contracts import Draw
from palate.randomness import generator
from palate.records import Preference
from palate.training import adapters
from palate.training.sources import PreferenceRow, collate, to_device
from palate.worlds import shapes
from palate.worlds.shapes import annotators

CLAIM = "diffusion_dpo"
RATES = (2e-4, 5e-4, 1e-3)
BETAS = (50.0, 200.0, 800.0, 3200.0)
BETA = 200.0
NOISY = {"temperature": 0.3, "lapse_rate": 0.2, "tie_threshold": 0.02}
CLEAN = {"temperature": 0.0, "lapse_rate": 0.0, "tie_threshold": 0.0}
STEPS, BATCH = 160, 8


def plan(tier: Tier) -> demo.Plan:
    return demo.Plan(prompts=192 if tier.name == "cpu" else 768, k=4, votes=1)


@cache
def labelled(tier: Tier, seed: int, labels: str) -> tuple[PreferenceRow, ...]:
    """The base's pictures of training prompts with one kind of label; the last eighth of the prompts is held out."""
    policy = fresh(tier, seed)
    traits = NOISY if labels == "noisy" else CLEAN
    people = annotators.panel(5, demo.TASTE, disagreement=0.3 if labels == "noisy" else 0.0, seed=seed, **traits)
    asked: list[Preference] = demo.ask(policy, people, plan(tier), seed, assembly.settings_of(common.WORLD, policy))
    pictures = [(row, [decode(medium) for medium in row.media if medium]) for row in asked]
    return tuple(assembly.encode(policy, pictures))


def split(rows: tuple[PreferenceRow, ...]) -> tuple[list[PreferenceRow], list[PreferenceRow]]:
    cut = len(rows) * 7 // 8
    return list(rows[:cut]), list(rows[cut:])


def trained(tier: Tier, seed: int, method: str, labels: str, rate: float, beta: float, n: int) -> dict[str, Any]:
    """One arm: train, judge on unseen prompts, rank the held-out pairs by the implicit reward."""
    train, held = split(labelled(tier, seed, labels))
    policy = fresh(tier, seed)
    algorithm = plugins.find("algorithms", method)
    own = {"beta_dpo": beta} if method == "diffusion_dpo" else {}
    options = config.section({**own, "prompt_dropout": 0.1}, algorithm.Config, "algorithm")
    settings = TrainingSettings(
        max_steps=STEPS, batch_size=BATCH, learning_rate=rate, warmup_steps=10, lr_schedule="linear", seed=seed,
        weight_decay=0.0, checkpoint_every=1_000_000,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        source = assembly.offline_source(policy, train, options, settings, 0.0)
        reference = assembly.reference_for(policy, algorithm, options)
        result = assembly.fit(
            policy, algorithm, options, source, settings, folder, reference=reference, tensorboard=False, progress=False
        )
    arm = evaluate(policy, shapes.scorer(), n, seed)
    clean = split(labelled(tier, seed, "clean"))[1] if labels == "noisy" else held
    return {
        "scores": common.scores_of(arm),
        "accuracy": accuracy(policy, clean),
        "drift": common.drift(policy),
        "displacement": {k: v for k, v in result.metrics.items() if k.startswith("displacement")},
        "rate": rate,
        "beta": beta,
        "summary": f"reward {np.mean(arm.reward(demo.TASTE)):.3f}",
    }


@torch.no_grad()
def accuracy(policy: Any, held: list[PreferenceRow], draws: int = 10) -> float:
    """Share of held-out pairs that the implicit reward, averaged over draws, ranks as the oracle does."""
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
    decided = batch.prefer > 0.5
    return float(((margin > 0).float() + 0.5 * (margin == 0).float())[decided].mean())


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
    rates: dict[str, list[float]] = {}
    names = ["base", "sft-noisy", "dpo-noisy", "dpo-clean", *[f"dpo-beta{b:g}" for b in BETAS if b != BETA]]
    for name in names:
        for seed in tier.seeds:
            found = common.load_arm(CLAIM, tier, name, seed)
            reference = common.load_arm(CLAIM, tier, "base", seed)
            if not found or not reference:
                continue
            won = common.wins(found, reference, demo.TASTE)
            rates.setdefault(name, []).append(won.rate)
            means = {d: f"{np.mean(found['scores'][d]):.3f}" for d in demo.TASTE}
            rows.append(
                {
                    "arm": name,
                    "seed": seed,
                    "wins over base": f"{won.rate:.3f} [{won.ci95[0]:.3f}, {won.ci95[1]:.3f}]",
                    **means,
                    "held-out accuracy": f"{found['accuracy']:.3f}" if "accuracy" in found else "",
                    "drift": f"{found['drift']:.3f}" if "drift" in found else "",
                }
            )
    mean = {name: float(np.mean(values)) for name, values in rates.items()}
    verdicts = [f"{name}: mean win rate {value:.3f} over {len(rates[name])} seeds" for name, value in mean.items()]
    if {"dpo-noisy", "sft-noisy"} <= mean.keys():
        held = mean["dpo-noisy"] >= 0.65 and mean["dpo-noisy"] > mean["sft-noisy"]
        verdicts.append(f"DPO beats the base by 0.65 and SFT on winners: {'holds' if held else 'does not hold'}")
    if {"dpo-noisy", "dpo-clean"} <= mean.keys():
        verdicts.append(
            f"clean labels beat noisy ones: {'holds' if mean['dpo-clean'] > mean['dpo-noisy'] else 'does not hold'}"
        )
    if rows:
        common.publish(CLAIM, tier, rows, verdicts)


def main() -> None:
    tier, minutes, only_table = common.arguments(__doc__)
    end = time.monotonic() + 60 * minutes
    if not only_table and common.run_arms(CLAIM, tier, tuning(tier), end) == 0:
        common.run_arms(CLAIM, tier, reported(tier), end)
    show(tier)


if __name__ == "__main__":
    main()
