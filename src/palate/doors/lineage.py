"""What a model has been taught by, as far as folders tell: no judge of its training may pass for one held out.

rewards("runs/sdxl_rounds")    # scorers of its own run, of the data it learnt from, and of the run it began from
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from palate.doors import lookup, synthesis


def rewards(model: str) -> list[str]:
    """Names of scorers that rewarded a model, voted in its rounds or labelled its data; none for what is no run."""
    return list(dict.fromkeys(_of_model(model, set())))


def of_recipe(recipe: Mapping[str, Any], beside: Path | None = None) -> list[str]:
    """The same of a run by its recipe, resolved and plain. beside: where its paths may begin from as well."""
    return list(dict.fromkeys(_of_recipe(recipe, beside, set())))


def _of_model(model: str, seen: set[Path]) -> Iterator[str]:
    folder = Path(model).resolve()
    if folder not in seen and lookup.base_of(folder) is not None:
        seen.add(folder)
        yield from _of_recipe(lookup.recipe_of(folder), None, seen)


def _of_recipe(recipe: Mapping[str, Any], beside: Path | None, seen: set[Path]) -> Iterator[str]:
    def part(name: str) -> Mapping[str, Any]:
        return recipe.get(name) or {}

    for scorers in (part("rollout").get("scorers"), part("data").get("relabel"), part("rounds").get("scorers")):
        yield from scorers or ()
    if path := part("data").get("path"):
        yield from _of_data(place / path for place in (Path(), *([beside] if beside else [])))
    yield from _of_model(str(part("model").get("name") or ""), seen)
    if adapter := part("model").get("adapter"):
        yield from _of_model(str(Path(adapter).parent), seen)  # what a run exports lies in its folder


def _of_data(places: Iterable[Path]) -> list[str]:
    """The scorers by which a data set was synthesized."""
    for folder in places:
        if (held := folder / synthesis.MADE_OF).is_file():
            return list(json.loads(held.read_text(encoding="utf-8"))["scorers"])
    return []
