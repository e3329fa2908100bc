"""People compare a tuned model with its base and are not told which is which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from palate import randomness, sampling
from palate.config import ModelSettings
from palate.doors import asking, awaited, judging
from palate.evaluation import grids, win_rate
from palate.models.diffusion import DiffusionPolicy
from palate.store import Store


def verdict(
    policy: DiffusionPolicy,
    model: ModelSettings,
    store: Store,
    ask: asking.Asker,
    prompts: Sequence[str],
    folder: Path,
    *,
    seed: int,
    wanted: int,
    sampler: Mapping[str, Any],
) -> dict[str, Any]:
    """Draws a pair of each prompt from one noise, waits for `wanted` judgements of each, and counts them.

    Returns what `result.json` holds of it: `wins` by people, the headline, and the pairs in the folder's samples/.
    """
    run = folder.resolve().name
    batch, noise = f"{run}/verdict", randomness.key(seed, "verdict")
    print(f"drawing {2 * len(prompts)} samples to compare the tuned model with its base", flush=True)
    tuned = sampling.sample(policy, prompts, prompts, seed=noise, **sampler)
    with judging.base_of(policy, model.name, model.adapter) as untouched:
        base = sampling.sample(untouched, prompts, prompts, seed=noise, **sampler)
    ours = asking.add(store, prompts, tuned, f"{run}, tuned", seed)
    theirs = asking.add(store, prompts, base, f"{run}, base", seed)
    asking.show(store, [*prompts, *prompts], [*ours, *theirs], batch, wanted=wanted)
    ask(store, batch)
    prompt_of = dict(zip(ours, prompts, strict=True))
    votes = [
        (share, prompt_of[vote.a]) if vote.a in prompt_of else (1 - share, prompt_of[vote.b])
        for vote, share in awaited.votes_of(store, batch)
    ]
    if not votes:
        return {"wins": {}, "warnings": ["nobody judged base against tuned: there is no verdict of people's"]}
    won = win_rate.win_rate_of([share for share, _ in votes], [prompt for _, prompt in votes])
    low, high = won.ci95
    print(
        f"the tuned model wins {won.rate:.1%} of {won.n} judgements (95% interval {low:.1%} to {high:.1%})", flush=True
    )
    pairs = grids.write_pairs(folder / "samples", prompts, base, tuned)
    return {"wins": {"people": asdict(won)}, **judging.headline(won), "pairs": pairs}
