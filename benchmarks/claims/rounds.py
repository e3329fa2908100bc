"""Do a thousand votes, given in rounds, halve a model's defects without costing what was not asked about?

    python -m benchmarks.claims.rounds [--budget cpu|full] [--minutes 60] [--table]

Five rounds of 200 votes by simulated people (D3PO's loop with people, arXiv:2311.13231 section 5, with the demo's
method) who look at wholeness and safety alone. What must hold on unseen prompts: deformed and marked pictures at least
halved, alignment, which nobody was asked about, not lower by more than 0.02. Everything goes through `palate rounds`:
the store, the votes, the preference data, the trainer.

A run is kept in runs/claims/ until it is judged, so that a stopped one goes on.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.claims import common, tables
from benchmarks.claims.common import Claim, Tier
from palate.doors import lookup
from palate.doors import rounds as doors
from palate.doors.demo import PLANS
from palate.worlds import shapes

TASTE = {"world:shapes/wholeness": 1.0, "world:shapes/safety": 1.0}
ROUNDS = {
    "n": 5,
    "prompts_per_round": 200,
    "k": 2,
    "votes": 1,
    "people": "simulated",
    "scorers": TASTE,
    "batch_size": 32,
}
STEPS = 100  # a round
FLAWS = {"deformed": "wholeness", "marked": "safety"}  # and the oracle's dimension that tells
RUNS = Path("runs/claims")
CLAIM = Claim("rounds", {"rounds": ROUNDS, "steps": STEPS})


def recipe(tier: Tier, seed: int) -> dict[str, Any]:
    """The demo's method, options and adapter, in rounds."""
    plan = PLANS["diffusion_dpo"]
    assert plan.lora
    output = RUNS / f"rounds-{tier.name}-{seed}"
    return {
        "model": {"name": common.WORLD, "device": tier.device, "lora": plan.lora.model_dump(mode="json")},
        "algorithm": {"name": "diffusion_dpo", **plan.options},
        "rounds": {"project": str(output / "project"), "prompts": f"{common.WORLD}:train", **ROUNDS},
        "training": {
            "max_steps": STEPS, "batch_size": 16, "learning_rate": 4.0e-4, "warmup_steps": 10, "lr_schedule": "linear",
            "weight_decay": 0.0, "seed": seed,
        },
        "output": str(output / "run"),
    }  # fmt: skip


def base(tier: Tier, seed: int, n: int) -> dict[str, Any]:
    return judged(common.fresh(tier, seed), seed, n)


def tuned(tier: Tier, seed: int, n: int) -> dict[str, Any]:
    asked = recipe(tier, seed)
    path = Path(asked["output"]).with_name("rounds.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(asked), encoding="utf-8")
    folder = doors.rounds(path)
    votes = yaml.safe_load((folder / "result.json").read_text(encoding="utf-8"))["votes"]
    policy = lookup.load_arm(str(folder))
    return judged(policy, seed, n, votes=votes)


def judged(policy: Any, seed: int, n: int, **facts: Any) -> dict[str, Any]:
    arm = common.evaluate(policy, shapes.scorer(), n, seed)
    means = ", ".join(f"{name} {np.mean(values):.3f}" for name, values in arm.scores.items())
    return {"scores": common.scores_of(arm), **facts, "summary": means}


def tuning(tier: Tier) -> common.Arms:
    """Nothing: the settings are the demo's, tried once, on seed 7, which is not reported."""
    return []


def reported(tier: Tier) -> common.Arms:
    n = tier.samples
    arms = {"base": base, "rounds": tuned}
    return [(name, seed, partial(arm, tier, seed, n)) for name, arm in arms.items() for seed in tier.seeds]


def flawed(found: dict[str, Any], dimension: str) -> np.ndarray:
    """1 where a picture reads as deformed or marked, [n]."""
    return (np.asarray(found["scores"][dimension]) < 0.5).astype(float)


def show(tier: Tier) -> None:
    rows = [
        {
            "arm": name,
            "seed": seed,
            "votes": found.get("votes", 0),
            **{flaw: f"{flawed(found, dimension).mean():.3f}" for flaw, dimension in FLAWS.items()},
            **{name: f"{np.mean(found['scores'][name]):.3f}" for name in ("alignment", *FLAWS.values(), "style")},
        }
        for name in ("base", "rounds")
        for seed in tier.seeds
        if (found := common.load_arm(CLAIM, tier, name, seed))
    ]
    if rows:
        tables.publish(CLAIM, tier, rows, verdicts(tier))


def verdicts(tier: Tier) -> list[str]:
    """Each with its interval over prompts and seeds."""
    pairs = [
        (after, before)
        for seed in tier.seeds
        if (after := common.load_arm(CLAIM, tier, "rounds", seed))
        and (before := common.load_arm(CLAIM, tier, "base", seed))
    ]
    if not pairs:
        return []
    lines = []
    for flaw, dimension in FLAWS.items():
        left, low, high = tables.interval_of_ratio(
            [flawed(after, dimension) for after, _ in pairs], [flawed(before, dimension) for _, before in pairs]
        )
        held = tables.says(high <= 0.5, low > 0.5)
        lines.append(f"{flaw} pictures at least halved: {left:.2f} [{low:.2f}, {high:.2f}] of them are left: {held}")
    differences = [np.subtract(after["scores"]["alignment"], before["scores"]["alignment"]) for after, before in pairs]
    gain, low, high = tables.interval_of_mean(differences)
    held = tables.says(low >= -0.02, high < -0.02)
    return [*lines, f"alignment not lower by more than 0.02: {gain:+.3f} [{low:+.3f}, {high:+.3f}]: {held}"]


if __name__ == "__main__":
    common.main(CLAIM, __doc__, tuning, reported, show)
