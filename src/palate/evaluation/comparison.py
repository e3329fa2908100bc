"""The page of a comparison: media side by side, then who wins by whom and how surely, and what else is to be known.

Of two models or more; it loads nothing but videos and sounds of its folder, has no script, and takes every text from
outside for text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from palate.evaluation import exhibits, report
from palate.evaluation.charts import number

FIRST = 12  # prompts shown at once; the others behind a click


def is_comparison(facts: Mapping[str, Any]) -> bool:
    """Whether a result.json is a comparison's and not a training run's."""
    return "verdicts" in facts


def write(folder: Path, path: Path) -> None:
    """Writes the page of a comparison's folder, whole or not at all. Raises ReportError naming the file."""
    facts = report.read_object(folder / "result.json")
    try:
        page = render(facts, folder / "samples", path.parent)
    except (KeyError, TypeError, IndexError) as error:
        raise report.ReportError(f"{folder / 'result.json'} is not of this version: {error!r}") from None
    report.write_page(page, path)


def render(facts: Mapping[str, Any], media: Path, beside: Path) -> str:
    """The page as text. media: the folder of those that `shown` names. beside: the folder that the page will lie in."""
    facts = {"means": {}, "warnings": [], "data": {}, "sampling": {}, "versions": {}, **facts}
    models = [str(model) for model in facts["models"]]
    names = dict(zip(models, short_names(models), strict=True))
    shown = [
        {
            "prompt": entry["prompt"],
            "category": entry.get("category", ""),
            "media": [exhibits.of_file(media / Path(file).name) for file in entry["files"]],
        }
        for entry in facts.get("shown", ())
    ]
    verdicts = [_told(entry, names) for entry in facts["verdicts"]]
    environment = report.environment(beside)
    environment.filters |= {"known_ends": _known, "times": _times}
    return environment.get_template("comparison.html.j2").render(
        facts=facts,
        names=names,
        models=models,
        shown=shown,
        first=FIRST,
        judges=[(judge, [v for v in verdicts if v["judge"] == judge["name"]]) for judge in facts["judges"]],
        strengths=_strengths(facts, names),
        categories=_categories(facts, names),
        beside=[entry | {"name": names[entry["model"]]} for entry in facts.get("against_first", ())],
        people=facts.get("people"),
    )


def short_names(models: Sequence[str]) -> list[str]:
    """The last part of each path where that tells them apart, else all of it; numbered if they are the same."""
    last = [Path(model).name or model for model in models]
    found = [short if last.count(short) == 1 else model for short, model in zip(last, models, strict=True)]
    return [name if found.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(found)]


def _told(entry: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A verdict as the page needs it: its models' short names, ends that are numbers, its tone."""
    ends = _ends(entry["ci95"])
    sure = entry["p_holm"] is not None and entry["p_holm"] < 0.05  # of all that the page compares
    return dict(entry) | {
        "a": names[entry["a"]],
        "b": names[entry["b"]],
        "ends": ends,
        "tone": report.tone(ends, 0.5) if sure else "open",
        "even": entry["ties"] == 1,
    }


def _strengths(facts: Mapping[str, Any], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """For each judge its models, best first, with places of their Elo points on a common scale in percent."""
    found = []
    for judge, rows in (facts.get("strengths") or {}).items():
        ends = [value for row in rows for value in (row["elo"], *row["elo_ci95"]) if value is not None]
        if not ends:
            continue
        low, high = min([0.0, *ends]), max([0.0, *ends])
        pad = 0.06 * max(high - low, 1.0)
        low, high = low - pad, high + pad

        def place(value: float | None, none: float, low: float = low, high: float = high) -> float:
            return none if value is None else 100 * (value - low) / (high - low)

        entries = [
            {
                "name": names[row["model"]],
                "elo": row["elo"],
                "ends": row["elo_ci95"],
                "from": place(row["elo_ci95"][0], 0.0),
                "to": place(row["elo_ci95"][1], 100.0),
                "at": place(row["elo"], 50.0),
                "first": row is rows[0],
            }
            for row in rows
        ]
        found.append({"judge": judge, "zero": place(0.0, 0.0), "rows": sorted(entries, key=lambda e: -float(e["elo"]))})
    return found


def _categories(facts: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any] | None:
    """A table: a row for each category, a column for each judge and model against the first."""
    rows = facts.get("categories") or ()
    if not rows:
        return None
    columns = list(dict.fromkeys((row["judge"], row["b"]) for row in rows))
    cells = {(row["category"], row["judge"], row["b"]): row for row in rows}
    sizes = {row["category"]: row["n_prompts"] for row in rows}
    table = []
    for category in dict.fromkeys(row["category"] for row in rows):
        line = []
        for judge, model in columns:
            cell = cells.get((category, judge, model))
            sure = cell is not None and cell["p"] is not None and cell["p"] < 0.05
            tone = "open" if cell is None or not sure else "better" if cell["rate"] > 0.5 else "worse"
            line.append((cell, tone))
        table.append({"name": category, "prompts": sizes[category], "cells": line})
    several = len({model for _, model in columns}) > 1
    heads = [(judge, names[model] if several else "") for judge, model in columns]
    return {"columns": heads, "rows": table, "against": names[facts["models"][0]]}


def _ends(ends: Sequence[float | None]) -> tuple[float, float]:
    low, high = ends
    return -math.inf if low is None else low, math.inf if high is None else high


def _known(ends: Sequence[float | None]) -> bool:
    return all(value is not None and math.isfinite(value) for value in ends)


def _times(n: float | None) -> str:
    """A number of draws in words; infinite is stored as null."""
    if n is None or math.isinf(n):
        return "the best of any number"
    return "less than one" if n < 0.995 else "one" if n < 1.005 else f"the best of {number(n, 2)}"
