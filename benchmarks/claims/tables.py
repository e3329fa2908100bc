"""What came out of a claim's arms: paired intervals over prompts and seeds, verdicts, and the table beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.claims import common
from benchmarks.claims.common import Claim, Tier
from palate.evaluation import win_rate


def interval_of_ratio(
    top: Sequence[np.ndarray], bottom: Sequence[np.ndarray], resamples: int = 4000, seed: int = 0
) -> tuple[float, float, float]:
    """mean(top) / mean(bottom) with its 95% interval; per seed one array of paired differences a prompt.

    Prompts are resampled within seeds and seeds are resampled too. NaN where the bottom is exactly 0.
    """
    rng = np.random.default_rng(seed)

    def ratio(above: Sequence[float], below: Sequence[float]) -> float:
        return float(np.mean(above) / np.mean(below)) if np.mean(below) != 0 else math.nan

    ratios = []
    for _ in range(resamples):
        above, below = [], []
        for i in rng.integers(len(top), size=len(top)):
            rows = rng.integers(len(top[i]), size=len(top[i]))
            above.append(float(np.mean(top[i][rows])))
            below.append(float(np.mean(bottom[i][rows])))
        ratios.append(ratio(above, below))
    known = [value for value in ratios if not math.isnan(value)] or [math.nan]
    low, high = np.quantile(known, [0.025, 0.975])
    return ratio([float(np.mean(x)) for x in top], [float(np.mean(x)) for x in bottom]), float(low), float(high)


def interval_of_mean(rows: Sequence[np.ndarray], resamples: int = 4000, seed: int = 0) -> tuple[float, float, float]:
    """The mean of paired differences, one array a seed, with its 95% interval; seeds and prompts are resampled."""
    ones = [np.ones(len(row)) for row in rows]
    return interval_of_ratio(rows, ones, resamples, seed)


def against_base(
    claim: Claim,
    tier: Tier,
    names: Sequence[str],
    weights: Mapping[str, float],
    column: str = "arm",
    told: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """A table's rows: the base and the named arms that have run, each against the base of its seed by a reward.

    column: what the arms are called. told: shares that arms stored beside their scores, shown before the rest.
    """
    rows: list[dict[str, Any]] = []
    for name in ("base", *names):
        for seed in tier.seeds:
            found, base = common.load_arm(claim, tier, name, seed), common.load_arm(claim, tier, "base", seed)
            if not found or not base:
                continue
            won = wins(found, base, weights)
            rate = f"{won.rate:.3f} [{won.ci95[0]:.3f}, {won.ci95[1]:.3f}]"
            rows.append(
                {
                    column: name,
                    "seed": seed,
                    **{share: f"{found[share]:.3f}" if share in found else "" for share in told},
                    "wins over base": "" if name == "base" else rate,
                    **{d: f"{np.mean(found['scores'][d]):.3f}" for d in weights},
                    "drift": f"{found['drift']:.3f}" if "drift" in found else "",
                    "rate": f"{found['rate']:g}" if "rate" in found else "",
                }
            )
    return rows


def says(held: bool, refuted: bool) -> str:
    """A verdict on a claim by its interval."""
    return "holds" if held else "does not hold" if refuted else "open"


def rewards(found: Mapping[str, Any], weights: Mapping[str, float]) -> np.ndarray:
    """An arm's stored scores, weighted and added up, a number a prompt."""
    return np.sum([w * np.asarray(found["scores"][d]) for d, w in weights.items()], axis=0)


def wins(tuned: Mapping[str, Any], base: Mapping[str, Any], weights: Mapping[str, float]) -> win_rate.WinRate:
    """Win rate of two arms' stored scores by a weighted reward; each row is a prompt of its own."""
    a, b = rewards(tuned, weights), rewards(base, weights)
    return win_rate.win_rate(a, b, list(range(len(a))))


def outcomes(tuned: Mapping[str, Any], other: Mapping[str, Any], weights: Mapping[str, float]) -> np.ndarray:
    """1 where the first arm's reward is higher, 1/2 where it ties, else 0, a number a prompt."""
    return win_rate.outcomes(rewards(tuned, weights), rewards(other, weights))


def versus(
    claim: Claim, tier: Tier, arm: str, other: str, weights: Mapping[str, float], text: str, least: float = 0.5
) -> list[str]:
    """One verdict: how often an arm's pictures are preferred to another's, over all prompts and seeds that have both.
    No line where none has."""
    duels = [
        outcomes(a, b, weights)
        for seed in tier.seeds
        if (a := common.load_arm(claim, tier, arm, seed)) and (b := common.load_arm(claim, tier, other, seed))
    ]
    if not duels:
        return []
    rate, low, high = interval_of_mean(duels)
    verdict = says(low > least, high < least)
    found = f"{arm} wins {rate:.3f} [{low:.3f}, {high:.3f}] against {other} over {len(duels)} seeds"
    return [f"{text}: {found}: {verdict}"]


def edges(name: str, best: tuple[Any, ...], grid: Sequence[tuple[Any, ...]]) -> list[str]:
    """What of a tuned setting is an end of its grid, so that a better one may lie outside."""
    lines = []
    for field in getattr(best, "_fields", ()):
        values = sorted({getattr(at, field) for at in grid if getattr(at, field) is not None})
        if len(values) > 1 and (found := getattr(best, field)) in (values[0], values[-1]):
            lines.append(f"{name}: the best {field}, {found:g}, is an end of the grid")
    return lines


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as aligned text that is also Markdown."""
    names = list(rows[0])
    cells = [names, *[[str(row[name]) for name in names] for row in rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def publish(claim: Claim, tier: Tier, rows: Sequence[Mapping[str, Any]], verdicts: Sequence[str]) -> None:
    """Prints the table and writes it beside the arms, as JSON and Markdown."""
    arms = [json.loads(path.read_text()) for path in sorted((common.RESULTS / claim.name / tier.name).glob("*.json"))]
    known = [arm for arm in arms if arm.get("stamp") == claim.stamp()]
    minutes, kinds = sum(arm["seconds"] for arm in known) / 60, sorted({arm["machine"] for arm in known})
    text = (
        f"{claim.name}, {tier.name} tier, {tier.samples} pictures an arm and seed; {len(known)} arms, "
        f"{minutes:.0f} minutes in all ({'; '.join(kinds)})\n\n{table(rows)}\n\n"
        + "\n".join(f"- {line}" for line in verdicts)
    )
    print(text)
    common.RESULTS.mkdir(parents=True, exist_ok=True)
    facts = {
        "claim": claim.name,
        "minutes": round(minutes, 1),
        "machines": kinds,
        "settings": dict(claim.settings),
        "tier": tier.name,
        "seeds": list(tier.seeds),
        "rows": list(rows),
        "verdicts": list(verdicts),
    }
    (common.RESULTS / f"{claim.name}-{tier.name}.json").write_text(json.dumps(facts, indent=2) + "\n")
    (common.RESULTS / f"{claim.name}-{tier.name}.md").write_text(text + "\n")
