"""The sweep behind the demo's settings (palate.doors.demo.PLANS): which method, rate and leash serve a newcomer best.

    python -m benchmarks.sweep_demo [--minutes 30] [--table]

Every arm of a seed shares the pictures and the votes; seeds 11 and 12 are the sweep's own and are used nowhere else.
Resumable arm by arm.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.claims import common, tables
from palate import config, plugins
from palate.doors import assembly, crowd, demo, encoding, lookup
from palate.media import decode
from palate.worlds import shapes
from palate.worlds.shapes import annotators

NAME = common.Claim("demo_sweep", {})
SEEDS = (11, 12)
TIER = replace(common.CPU, seeds=SEEDS, samples=320)

# Diffusion-DPO's leash, rate, prompts and steps; all else as in palate.doors.demo.PLANS.
DPO = {
    f"dpo-beta{beta:g}-lr{rate:g}-{prompts}prompts-{steps}steps": {
        "options": {"beta_dpo": beta},
        "learning_rate": rate,
        "prompts": prompts,
        "max_steps": steps,
    }
    for beta, rate, prompts, steps in (
        (300.0, 6e-4, 384, 280),
        (1000.0, 4e-4, 384, 200),
        (1000.0, 4e-4, 512, 320),
        (1500.0, 4e-4, 640, 400),
        (3000.0, 5e-4, 384, 240),
    )
}
D3PO = {f"d3po-lr{rate:g}": {"learning_rate": rate} for rate in (5e-4, 1e-3)}


@cache
def preferences(seed: int, prompts: int) -> tuple[Any, ...]:
    """The base's pictures with the people's votes, encoded."""
    policy = common.fresh(TIER, seed)
    plan, people = demo.PLANS["diffusion_dpo"], annotators.panel(5, demo.TASTE, seed=seed)
    chosen, sampler = demo.some(shapes.prompts("train"), prompts, seed), lookup.settings_of(demo.WORLD, policy)
    asked = crowd.ask(policy, people, chosen, k=plan.k, votes=plan.votes, seed=seed, sampler=sampler)
    pictures = [(row, [decode(medium) for medium in row.media if medium]) for row in asked]
    return tuple(encoding.encode(policy, pictures))


def base(seed: int) -> dict[str, Any]:
    arm = common.evaluate(common.fresh(TIER, seed), shapes.scorer(), TIER.samples, seed)
    return {"scores": common.scores_of(arm), "summary": f"reward {arm.reward(demo.TASTE).mean():.3f}"}


def trained(method: str, seed: int, arm: dict[str, Any]) -> dict[str, Any]:
    """One setting of one method, trained and judged as the demo does it."""
    plan = demo.PLANS[method]
    change = {"seed": seed, **{k: v for k, v in arm.items() if k not in ("options", "prompts")}}
    training = plan.training.model_copy(update=change)
    policy = lookup.load_policy(config.ModelSettings(name=demo.WORLD, device="cpu", lora=plan.lora), seed)
    algorithm = plugins.find("algorithms", method)
    options = config.section({**plan.options, **arm.get("options", {})}, algorithm.Config, "algorithm")
    with tempfile.TemporaryDirectory() as folder:
        source, reference = demo.source_for(
            policy,
            algorithm,
            options,
            training,
            plan,
            seed,
            lambda: preferences(seed, arm.get("prompts", plan.prompts)),
        )
        result = assembly.fit(
            policy, algorithm, options, source, training, folder, reference=reference, tensorboard=False, progress=False
        )
    judged = common.evaluate(policy, shapes.scorer(), TIER.samples, seed)
    untouched = common.load_arm(NAME, TIER, "base", seed)
    assert untouched
    facts = {"scores": common.scores_of(judged)}
    won = tables.wins(facts, untouched, demo.TASTE)
    return {
        **facts,
        "win_rate": won.rate,
        "ties": won.ties,
        "exported_step": result.exported_step,
        "metrics": result.metrics,
        "drift": common.drift(policy),
        "summary": f"win rate {won.rate:.3f}, "
        + ", ".join(f"{d} {np.mean(judged.scores[d]):.3f}" for d in demo.TASTE)
        + f", step {result.exported_step}",
    }


def show() -> None:
    rows = []
    folder = common.RESULTS / NAME.name / TIER.name
    for path in sorted(Path(folder).glob("*.json")):
        name, _, seed = path.stem.rpartition("-seed")
        found = common.load_arm(NAME, TIER, name, int(seed))
        if found:
            rows.append(
                {
                    "arm": name,
                    "seed": seed,
                    "win rate": f"{found['win_rate']:.3f}" if "win_rate" in found else "",
                    **{d: f"{np.mean(found['scores'][d]):.3f}" for d in demo.TASTE},
                    "drift": f"{found['drift']:.3f}" if "drift" in found else "",
                    "seconds": f"{found['seconds']:.0f}",
                }
            )
    if rows:
        tables.publish(NAME, TIER, rows, ["seeds 11 and 12 are the sweep's own"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    end = time.monotonic() + 60 * given.minutes
    arms: list[Any] = [("base", seed, partial(base, seed)) for seed in SEEDS]
    arms += [(name, SEEDS[0], partial(trained, "diffusion_dpo", SEEDS[0], arm)) for name, arm in DPO.items()]
    arms += [(name, SEEDS[0], partial(trained, "d3po", SEEDS[0], arm)) for name, arm in D3PO.items()]
    if not given.table:
        common.run_arms(NAME, TIER, arms, end)
    show()


if __name__ == "__main__":
    main()
