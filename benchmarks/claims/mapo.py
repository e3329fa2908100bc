"""Does MaPO do what its paper claims, in a world whose truth is known?

    python -m benchmarks.claims.mapo [--budget cpu|full] [--minutes 60] [--table]

The claims of arXiv:2406.06424 that are put to the test, for the loss of the official code and that of the paper:
 1. The farther the preferred style lies from what the base draws, the more MaPO gains on Diffusion-DPO.
 2. Where the base draws what is preferred they tie.
 3. A smaller beta does not close DPO's gap.
 4. Fine-tuning on the preferred does not learn to avoid what is rejected; MaPO does.
 5. Without a reference a step takes less time (the paper: 14.5%) and memory (17.5%).

Pictures: two of each of P training prompts by the base model. `style<m>`: the preferred one has its background brought
m of the way to a night blue that the base never draws, its content as it was; the other is left as it is. `taste`: the
exact oracle's preference between the two. `safety`: the rejected one has a forbidden mark drawn into it. All arms take
the same steps on the same pictures; the learning rate is tuned by method and task (of styles at 0.3) on one seed, not
reported. A picture in style is judged by how far its background has come, times how well the rest answers the prompt on
the background that was asked for.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from benchmarks.claims import common, style, tables
from benchmarks.claims.common import Claim, Tier, evaluate, fresh
from palate import likelihood, plugins, sampling, views
from palate.config import ModelSettings
from palate.doors import demo, lookup
from palate.models.contracts import Draw
from palate.randomness import generator
from palate.training import adapters
from palate.training.sources import PreferenceRow, collate, to_device
from palate.worlds import shapes

DROPOUT = 0.1
RATES = (1e-4, 3e-4, 1e-3)
BETA = 1000.0  # of Diffusion-DPO
SMALLER = (100.0, 300.0)
LEVELS = (0.1, 0.3, 1.0)
STEPS, BATCH = 160, 8
PROMPTS = {"cpu": 192, "full": 768}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {}),
    "dpo": ("diffusion_dpo", {"beta_dpo": BETA}),
    "mapo": ("mapo", {"form": "code"}),
    "mapo-paper": ("mapo", {"form": "paper", "beta": 32.0}),
}
TUNED_ON = {"taste": "taste", "safety": "safety", **{f"style{level:g}": "style0.3" for level in LEVELS}}
TASKS = tuple(TUNED_ON)
LIKED = {"liked": 1.0}
CLAIM = Claim(
    "mapo",
    {
        "methods": METHODS, "levels": LEVELS, "night": style.NIGHT, "steps": STEPS, "batch": BATCH, "rates": RATES,
        "prompts": PROMPTS, "dropout": DROPOUT,
    },
)  # fmt: skip


# --- data -------------------------------------------------------------------------------------------------------------


@cache
def pictures(tier: Tier, seed: int) -> tuple[Any, list[str], list[list[Any]]]:
    """The base, training prompts and its two pictures of each."""
    policy = fresh(tier, seed)
    prompts = demo.some(shapes.prompts("train"), PROMPTS[tier.name], seed)
    rows: list[list[Any]] = []
    for start in range(0, len(prompts), 16):
        some = [prompt for prompt in prompts[start : start + 16] for _ in range(2)]
        ids = [f"{prompt}/{i % 2}" for i, prompt in enumerate(some)]
        media = sampling.sample(policy, some, ids, seed=seed, **lookup.settings_of(common.WORLD, policy))
        rows += [media[i : i + 2] for i in range(0, len(media), 2)]
    return policy, prompts, rows


@cache
def labelled(tier: Tier, seed: int, task: str) -> tuple[PreferenceRow, ...]:
    """Rows of a task: the first of two is preferred, but for `taste`, where the oracle says."""
    policy, prompts, media = pictures(tier, seed)
    out = []
    for prompt, two in zip(prompts, media, strict=True):
        if task.startswith("style"):
            shown, scores = [style.in_style(two[0], prompt, float(task.removeprefix("style"))), two[1]], [1.0, 0.0]
        elif task == "safety":
            shown, scores = [two[0], style.marked(two[1])], [*style.Judge(task)([prompt], two[:1])["safety"], 0.0]
        else:
            shown, scores = two, [round(float(s), 4) for s in style.Judge(task)([prompt] * 2, two)["liked"]]
        prefer = views.prefer_from_scores(scores)
        x0 = policy.encode(shown).cpu()
        out.append(common.row(policy, prompt, x0, prefer, np.array(scores)[:, None]))
    return tuple(out)


# --- arms -------------------------------------------------------------------------------------------------------------


def trained(tier: Tier, seed: int, task: str, name: str, rate: float, n: int, **other: Any) -> dict[str, Any]:
    """One arm: train on the task's pairs, judge on unseen prompts by its truth."""
    method, options = METHODS[name]
    options = {**options, **other, "prompt_dropout": DROPOUT}
    rows = labelled(tier, seed, task)
    policy, result = common.align(tier, seed, method, options, rows, rate, steps=STEPS, batch_size=BATCH)
    arm = evaluate(policy, style.Judge(task), n, seed)
    return {
        "scores": common.scores_of(arm),
        "drift": common.drift(policy),
        "metrics": {name: value for name, value in result.metrics.items() if "/" in name},
        "rate": rate,
        "summary": f"liked {np.mean(arm.scores['liked']):.3f}",
    }


def base(tier: Tier, seed: int, task: str, n: int) -> dict[str, Any]:
    arm = evaluate(fresh(tier, seed), style.Judge(task), n, seed)
    return {"scores": common.scores_of(arm), "summary": f"liked {np.mean(arm.scores['liked']):.3f}"}


@torch.no_grad()
def mismatch(tier: Tier, seed: int, n: int = 64) -> dict[str, Any]:
    """The base's denoising error on what is preferred, as a share of that on its own pictures, by task."""
    policy, errors = pictures(tier, seed)[0], {}
    for task in TASKS:
        batch = to_device(collate(labelled(tier, seed, task)[:n], [0] * n, policy.condition([""])), policy.device)
        source, total = generator("mismatch"), torch.zeros(batch.mask.shape[1])
        for _ in range(4):
            t, noise = policy.path.sample_t(len(batch), source), torch.randn(batch.x0[:, 0].shape, generator=source)
            draw = to_device(Draw(t, noise, t < 0), policy.device)
            total -= likelihood.denoising(policy, batch.x0, batch.cond, draw).sum(0).cpu()
        errors[task] = total
    found = {task: round(float(total[0] / errors["taste"].mean()), 4) for task, total in errors.items()}
    return {"mismatch": found, "summary": ", ".join(f"{task} {ratio:.2f}" for task, ratio in found.items())}


def cost(tier: Tier, seed: int, repeats: int = 15) -> dict[str, Any]:
    """Milliseconds of a step's passes, medians of interleaved ones, and on an accelerator their peak memory in MiB,
    with an adapter and with all weights trained."""
    rows, out = labelled(tier, seed, "taste")[:BATCH], {}
    for what in ("adapter", "full"):
        runs = {name: _passes(tier, seed, name, rows, what == "full") for name in ("dpo", "mapo")}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(repeats):
            for name, run in runs.items():
                began = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - began)
        out[what] = {name: round(1000 * float(np.median(seconds)), 2) for name, seconds in times.items()}
    peaks = _peaks(tier, seed, rows) if tier.device != "cpu" and torch.cuda.is_available() else {}
    saved = 1 - out["adapter"]["mapo"] / out["adapter"]["dpo"]
    return {"step_ms": out, "peak_mib": peaks, "summary": f"{saved:.1%} less time with an adapter"}


def _passes(tier: Tier, seed: int, name: str, rows: Sequence[PreferenceRow], full: bool) -> Any:
    """A function that makes one step's passes, forward and backward."""
    method, options = METHODS[name]
    algorithm = plugins.find("algorithms", method)
    config = algorithm.Config(**options)
    how: dict[str, Any] = {"name": common.WORLD, "device": tier.device}
    policy = lookup.load_policy(ModelSettings(**how, lora=None), seed) if full else fresh(tier, seed)
    state, wants = algorithm.init(policy, config), algorithm.NEEDS.reference
    reference = adapters.reference_of(policy, "none" if wants == "none" else "base")
    batch = collate(rows, [0] * len(rows), policy.condition([""]))
    source = generator("cost")
    draw = Draw(
        policy.path.sample_t(len(rows), source), torch.randn(batch.x0[:, 0].shape, generator=source),
        torch.zeros(len(rows)) > 0,
    )  # fmt: skip
    batch, draw = to_device(batch, policy.device), to_device(draw, policy.device)

    def run() -> None:
        out = algorithm.step(policy, reference, batch, draw, state, config)
        (out.loss_sum / out.weight).backward()
        policy.module.zero_grad()
        if policy.device.type == "cuda":
            torch.cuda.synchronize()

    run()  # first passes are slower
    return run


def _peaks(tier: Tier, seed: int, rows: Sequence[PreferenceRow]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for what in ("adapter", "full"):
        found[what] = {}
        for name in ("dpo", "mapo"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            run = _passes(tier, seed, name, rows, what == "full")
            run()
            found[what][name] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
            del run
    return found


def tuning(tier: Tier) -> list[Any]:
    seed, n = common.TUNING_SEED, tier.tuning_samples
    return [
        (f"tune-{task}-{name}-{rate:g}", seed, partial(trained, tier, seed, task, name, rate, n))
        for task in dict.fromkeys(TUNED_ON.values())
        for name in METHODS
        for rate in RATES
    ]


def best_rate(tier: Tier, task: str, method: str) -> float:
    """The rate whose pictures are liked most on the tuning seed."""

    def liked(rate: float) -> float:
        found = common.load_arm(CLAIM, tier, f"tune-{TUNED_ON[task]}-{method}-{rate:g}", common.TUNING_SEED)
        assert found
        return float(np.mean(found["scores"]["liked"]))

    return max(RATES, key=liked)


def reported(tier: Tier) -> list[Any]:
    n, arms, last = tier.samples, [], TASKS[-1]
    for seed in common.few_seeds(tier):
        for task in TASKS:
            arms.append((f"{task}-base", seed, partial(base, tier, seed, task, n)))
            for name in METHODS:
                rate = best_rate(tier, task, name)
                arms.append((f"{task}-{name}", seed, partial(trained, tier, seed, task, name, rate, n)))
        for beta in SMALLER:
            other = partial(trained, tier, seed, last, "dpo", best_rate(tier, last, "dpo"), n, beta_dpo=beta)
            arms.append((f"{last}-dpo-beta{beta:g}", seed, other))
        arms.append(("mismatch", seed, partial(mismatch, tier, seed)))
    return [*arms, ("cost", tier.seeds[0], partial(cost, tier, tier.seeds[0]))]


# --- what came out ----------------------------------------------------------------------------------------------------


def show(tier: Tier) -> None:
    rows: list[dict[str, Any]] = []
    smaller = [f"dpo-beta{beta:g}" for beta in SMALLER]
    for task in TASKS:
        for name in ("base", *METHODS, *smaller):
            for seed in tier.seeds:
                found = common.load_arm(CLAIM, tier, f"{task}-{name}", seed)
                if found:
                    parts = {d: f"{np.mean(v):.3f}" for d, v in found["scores"].items() if d != "liked"}
                    rows.append(
                        {
                            "task": task,
                            "arm": name,
                            "seed": seed,
                            "liked": f"{np.mean(found['scores']['liked']):.3f}",
                            "of which": ", ".join(f"{d} {v}" for d, v in parts.items()),
                            "drift": f"{found['drift']:.3f}" if "drift" in found else "",
                            "rate": f"{found['rate']:g}" if "rate" in found else "",
                        }
                    )
    if rows:
        tables.publish(CLAIM, tier, rows, verdicts(tier))


def gaps(tier: Tier, task: str, name: str, other: str) -> dict[int, np.ndarray]:
    """How much more an arm's pictures are liked than another's, by seed a number a prompt."""
    pairs = {
        seed: [common.load_arm(CLAIM, tier, f"{task}-{arm}", seed) for arm in (name, other)] for seed in tier.seeds
    }
    return {seed: tables.rewards(a, LIKED) - tables.rewards(b, LIKED) for seed, (a, b) in pairs.items() if a and b}


def verdicts(tier: Tier) -> list[str]:
    """What the numbers say of each claim, with intervals over prompts and seeds."""
    lines: list[str] = []
    for name in ("mapo", "mapo-paper"):
        lines += along(tier, name)
        lines += tables.versus(CLAIM, tier, f"taste-{name}", "taste-dpo", LIKED, f"2. {name} beats DPO at no mismatch")
        for beta in SMALLER:
            text = f"3. {name} beats DPO of a smaller beta at the largest mismatch"
            lines += tables.versus(CLAIM, tier, f"{TASKS[-1]}-{name}", f"{TASKS[-1]}-dpo-beta{beta:g}", LIKED, text)
    for name in ("sft", "dpo", "mapo", "mapo-paper"):
        duels = [
            np.asarray(a["scores"]["safety"]) - np.asarray(b["scores"]["safety"])
            for seed in tier.seeds
            if (a := common.load_arm(CLAIM, tier, f"safety-{name}", seed))
            and (b := common.load_arm(CLAIM, tier, "safety-base", seed))
        ]
        if duels:
            mean, low, high = tables.interval_of_mean(duels)
            said = tables.says(low > 0, high < 0)
            lines.append(
                f"4. {name} draws fewer forbidden marks than the base: {mean:+.3f} [{low:+.3f}, {high:+.3f}]: {said}"
            )
    return lines + costs(tier)


def along(tier: Tier, name: str) -> list[str]:
    """The gap to DPO by level, and whether it grows from the first to the last."""
    found = {level: gaps(tier, f"style{level:g}", name, "dpo") for level in LEVELS}
    seeds = [seed for seed in tier.seeds if all(seed in gap for gap in found.values())]
    if not seeds:
        return []
    parts = []
    for level, gap in found.items():
        mean, low, high = tables.interval_of_mean([gap[seed] for seed in seeds])
        parts.append(f"{level:g}: {mean:+.3f} [{low:+.3f}, {high:+.3f}]")
    grown = [found[LEVELS[-1]][seed] - found[LEVELS[0]][seed] for seed in seeds]
    mean, low, high = tables.interval_of_mean(grown)
    off = [arm["mismatch"] for seed in seeds if (arm := common.load_arm(CLAIM, tier, "mismatch", seed))]
    errors = {level: np.mean([one[f"style{level:g}"] for one in off]) for level in LEVELS} if off else {}
    told = ", ".join(f"{error:.2f}" for error in errors.values())
    size = f" (the base's error there, of that on its own: {told})" if off else ""
    return [
        f"1. how much more {name}'s pictures are liked than DPO's, by mismatch: {', '.join(parts)}{size}; "
        f"it grows by {mean:+.3f} [{low:+.3f}, {high:+.3f}]: {tables.says(low > 0, high < 0)}"
    ]


def costs(tier: Tier) -> list[str]:
    found = common.load_arm(CLAIM, tier, "cost", tier.seeds[0])
    if not found:
        return []
    lines = []
    for unit, title in (("step_ms", "time"), ("peak_mib", "peak memory")):
        for what, by in found[unit].items():
            saved = 1 - by["mapo"] / by["dpo"]
            lines.append(
                f"5. {title} of MaPO's passes, {what}: {saved:.1%} less than DPO's ({by['mapo']:g}, {by['dpo']:g})"
            )
    return lines


if __name__ == "__main__":
    common.main(CLAIM, __doc__, tuning, reported, show)
