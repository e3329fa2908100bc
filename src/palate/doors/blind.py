"""People compare a tuned model with its base and are not told which is which."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from palate import randomness, sampling
from palate.config import ModelSettings
from palate.doors import asking, awaited, judging
from palate.evaluation import win_rate
from palate.models.diffusion import DiffusionPolicy
from palate.store import Store


def verdict(
    policy: DiffusionPolicy,
    model: ModelSettings,
    store: Store,
    ask: asking.Asker,
    prompts: Sequence[str],
    run: str,
    folder: Path,
    *,
    seed: int,
    wanted: int,
    sampler: Mapping[str, Any],
) -> dict[str, Any]:
    """Draws a pair of each prompt from one noise, waits for `wanted` judgements of each, and counts them.

    run: its name in the project. folder: the run's; what was drawn is remembered in rounds/verdict.json, so that people
    are asked about the same pairs whatever stops the run. Returns what `result.json` holds of it: `wins` by people, the
    headline, and the pairs in the folder's samples/; nothing if nobody judged.
    """
    drawn = folder / "rounds" / "verdict.json"
    if not drawn.is_file():
        noise = randomness.key(seed, "verdict")
        print(f"drawing {2 * len(prompts)} samples to compare the tuned model with its base", flush=True)
        tuned = sampling.sample(policy, prompts, prompts, seed=noise, **sampler)
        with judging.base_of(policy, model.name, model.adapter) as untouched:
            base = sampling.sample(untouched, prompts, prompts, seed=noise, **sampler)
        ids = {
            "tuned": asking.add(store, prompts, tuned, f"{run}, tuned", seed),
            "base": asking.add(store, prompts, base, f"{run}, base", seed),
        }
        judging.write_json(drawn, ids)
    ids = json.loads(drawn.read_text(encoding="utf-8"))
    ours, theirs = ids["tuned"], ids["base"]
    asking.show(store, [*prompts, *prompts], [*ours, *theirs], f"{run}/verdict", wanted=wanted)
    ask(store, f"{run}/verdict")
    prompt_of = dict(zip(ours, prompts, strict=True))
    votes = [
        (share, prompt_of[vote.a]) if vote.a in prompt_of else (1 - share, prompt_of[vote.b])
        for vote, share in awaited.votes_of(store, f"{run}/verdict")
    ]
    if not votes:
        print("nobody judged base against tuned: there is no verdict of people's", flush=True)
        return {}
    won = win_rate.win_rate_of([share for share, _ in votes], [prompt for _, prompt in votes])
    low, high = won.ci95
    told = f"the tuned model wins {won.rate:.1%} of {won.n} judgements (95% interval {low:.1%} to {high:.1%})"
    print(told, flush=True)
    pairs = _laid_out(store, prompts, {"base": theirs, "tuned": ours}, folder / "samples")
    return {"wins": {"people": asdict(won)}, **judging.headline(won), "pairs": pairs}


def _laid_out(
    store: Store, prompts: Sequence[str], sides: Mapping[str, Sequence[str]], folder: Path
) -> list[dict[str, str]]:
    """The pairs as files of the run's folder, as `pairs` of its result.json."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {sample.id: sample for sample in store.samples()}
    return [
        {"prompt": prompt}
        | {
            side: asking.laid_out(store, known[names[number]], folder, f"{side}_{number:03d}")
            for side, names in sides.items()
        }
        for number, prompt in enumerate(prompts)
    ]
