"""The curves of a run: which of its logged numbers share a chart, in which order, and what is said of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from palate.evaluation.charts import Chart

ABOUT = {  # in the order of the page; `x/` is for all metrics below x
    "loss": "What is made small.",
    "evaluation/reward": "Mean reward over the evaluation prompts, from the same noise each time.",
    "evaluation/": "Mean over the evaluation prompts, from the same noise each time.",
    "reward/accuracy": "Share of pairs in which the policy leans towards the chosen one.",
    "reward/margin": "How much more the policy favours the chosen over the rejected than the reference does.",
    "reward": "Of chosen and rejected: beta times how much likelier they are than under the reference.",
    "samples/": "Mean score of the policy's own samples of the round.",
    "kl": "Distance from the policy that sampled, or from the fixed reference if there is one.",
    "displacement": "How much the denoising error rose above the reference's; if both rise, damage tells them apart.",
    "beta/value": "How strongly the policy is held to the reference.",
    "beta/gap_squared": "Mean square of the two candidates' difference, by which an automatic beta is set.",
    "validation/": "The same of held-out pairs.",
    "clip_fraction": "Share of the steps that the clip held back.",
    "grad_norm": "Size of the gradient before clipping.",
}
LEVELS = {"reward/accuracy": (0.5, "chance"), "ratio": (1.0, "unchanged")}
PARTS = ("chosen", "rejected")  # of one quantity, in one chart
UNEVENTFUL = ("learning_rate", "beta/", "round/", "rows/", "step/")  # not worth a chart while they stay the same


def charts(rows: Sequence[Mapping[str, Any]], start_loss: float | None = None) -> list[Chart]:
    """A chart for each quantity in the rows; held-out values and the parts of a quantity share their chart."""
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for key in dict.fromkeys(key for row in rows for key in row if key != "step"):
        points = [(row["step"], float(row[key])) for row in rows if _is_number(row.get(key))]
        dull = key.startswith(UNEVENTFUL) and len({y for _, y in points}) == 1
        if points and not dull:
            title, name = _place(key)
            lines.setdefault(title, {})[name] = points
    levels = dict(LEVELS)
    if start_loss is not None:
        levels["loss"] = (start_loss, f"{start_loss:.3f}: nothing learnt yet")
    return [
        Chart(title, lines[title], level=levels.get(title), about=ABOUT.get(_about(title), ""))
        for title in sorted(lines, key=_rank)
    ]


def _place(key: str) -> tuple[str, str]:
    """The chart of a metric and its line's name there."""
    title, _, part = key.rpartition("/")
    if title and part in PARTS:
        return title, part
    first, _, rest = key.partition("/")
    if rest and first in ("validation", "held_out"):
        title, name = _place(rest)
        return title, "held out" if name == "training" else f"{name}, held out"
    return key, "training"


def _about(title: str) -> str:
    """The entry of ABOUT that a chart belongs to: its own or its folder's."""
    return title if title in ABOUT else title[: title.find("/") + 1]


def _rank(title: str) -> tuple[int, str]:
    order = list(ABOUT)
    return (order.index(_about(title)) if _about(title) in ABOUT else len(order), title)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
